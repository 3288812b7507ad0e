// CUDA kernel of acefast.ops.conv1d (K09): an implicit GEMM.
//
// Math    y = bias + sum_j weight[:, j] x[t * stride + j * dilation - padding] (+ residual); snake(y) of the unrounded
//         y. Sums and epilogue in fp32
// Tiling  a block has M rows of N channels of a song, a warp 64 x 64. Row tiles go GROUP at a time past all channels,
//         so that a weight tile is read from L2
// Loop    common/gemm.cuh's, over taps and channels: songs lie between guards of zeros. Rows beyond the last repeat it
//         and are not stored
// Flops   2 * B * R * taps * Cin * Cout
// Bytes   (B * L * Cin + taps * Cin * Cout + B * R * Cout * (results + residual)) * itemsize
// Bound   tensor cores; by memory a pointwise one with a residual up to 512 channels
#include "common/gemm.cuh"
#include "common/guarded.cuh"
#include "common/snake.cuh"

constexpr int GROUP = 8;

// x, residual, y and waved are at the first guard row of the first song and have ``guard`` rows, at least ``padding``,
// around each song's L or R; residual, y or waved may be null, and y may be residual. Grid: row tiles * Cout / N, 1,
// songs. Dynamic shared memory: (M + N) * BYTES * STAGES bytes.
template <typename T, int M, int N, int BYTES, int STAGES>
__device__ __forceinline__ void conv1d(const T* x, const T* weight, const T* bias, const T* residual,
                                       const float* alpha, const float* inv_beta, T* y, T* waved, int L, int R,
                                       int Cin, int Cout, int taps, int stride, int padding, int dilation, int guard) {
  using Gemm = TileGemm<T, M, N, BYTES, STAGES>;
  constexpr int SIZE = sizeof(T);
  const int tiles = (R + M - 1) / M, in_group = GROUP * (Cout / N);
  const int group = blockIdx.x / in_group, within = blockIdx.x % in_group;
  const int high = tiles - group * GROUP < GROUP ? tiles - group * GROUP : GROUP;  // row tiles of this group
  const int tile = group * GROUP + within % high, column = within / high * N;
  const int own = tile * M, live = R - own, K = taps * Cin;

  const T* const from = x + (i64(blockIdx.z) * (L + 2 * guard) + i64(own) * stride + (guard - padding)) * Cin;
  const int steps = Cin * SIZE / BYTES;
  const Taps<BYTES> rows{reinterpret_cast<const unsigned char*>(from), stride * Cin * SIZE, steps,
                         (dilation - 1) * Cin * SIZE, steps};
  const Matrix<BYTES> columns{reinterpret_cast<const unsigned char*>(weight + i64(column) * K), K * SIZE};
  Gemm gemm;
  gemm.run(Clipped<Taps<BYTES>>{rows, live - 1}, columns, taps * steps);

  const i64 song = (i64(blockIdx.z) * (R + 2 * guard) + guard) * Cout, start = song + i64(own) * Cout + column;
#pragma unroll
  for (int q = 0; q < 2; q++) {
    const int c = gemm.channel(q);
    float b[8];
    unpack<T>(bias ? load16(bias + column + c) : make_uint4(0, 0, 0, 0), b);
    uint4 added[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
      added[i] = residual && gemm.row(i) < live ? load16(residual + start + gemm.row(i) * Cout + c)
                                                : make_uint4(0, 0, 0, 0);
    auto result = [&](int i, float(&v)[8]) {
      float r[8];
      unpack<T>(added[i], r);
      gemm.share(q, i, v);
#pragma unroll
      for (int e = 0; e < 8; e++) v[e] = v[e] + b[e] + r[e];
    };
    float v[8];
    if (y) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        result(i, v);
        if (gemm.row(i) < live) store16(y + start + gemm.row(i) * Cout + c, pack<T>(v));
      }
    }
    if (waved) {
      const Wave wave(alpha + column + c, inv_beta + column + c);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        result(i, v);
        wave.apply(v);
        if (gemm.row(i) < live) store16(waved + start + gemm.row(i) * Cout + c, pack<T>(v));
      }
    }
  }
  const bool first = own == 0 && column == 0, last = live <= M && column == 0;
  if (y) zero_guards<Gemm::THREADS>(y + song, Cout, R, guard, first, last);
  if (waved) zero_guards<Gemm::THREADS>(waved + song, Cout, R, guard, first, last);
}

// BLOCKS: on a multiprocessor, for which registers must suffice.
#define ENTRY(name, T, M, N, BYTES, STAGES, BLOCKS)                                                                   \
  extern "C" __global__ __launch_bounds__(M / 64 * (N / 64) * 32, BLOCKS) void name(                                  \
      const T* x, const T* weight, const T* bias, const T* residual, const float* alpha, const float* inv_beta, T* y, \
      T* waved, int L, int R, int Cin, int Cout, int taps, int stride, int padding, int dilation, int guard) {        \
    conv1d<T, M, N, BYTES, STAGES>(x, weight, bias, residual, alpha, inv_beta, y, waved, L, R, Cin, Cout, taps,       \
                                   stride, padding, dilation, guard);                                                 \
  }
ENTRY(conv1d_n256_k64_bf16, bf16, 128, 256, 128, 3, 1)
ENTRY(conv1d_n256_k64_fp16, fp16, 128, 256, 128, 3, 1)
ENTRY(conv1d_n128_k64_bf16, bf16, 128, 128, 128, 2, 2)
ENTRY(conv1d_n128_k64_fp16, fp16, 128, 128, 128, 2, 2)
ENTRY(conv1d_n128_k32_bf16, bf16, 128, 128, 64, 3, 2)
ENTRY(conv1d_n128_k32_fp16, fp16, 128, 128, 64, 3, 2)
