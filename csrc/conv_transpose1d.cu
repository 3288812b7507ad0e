// CUDA kernel of acefast.ops.conv_transpose1d (K11): one GEMM whose rows overlap, with a crop at the store.
//
// Math    y[t * s + j - s / 2] = bias + x[t] @ w[j] + x[t - 1] @ w[j + s];  snake(y) of the unrounded y. Sums and
//         epilogue in fp32
// Tiling  a block has M rows t of N of the s * Cout columns (j, channel), a warp 64 x 64. The crop leaves rows 1 .. L
//         of the columns with j < s / 2 and rows 0 .. L - 1 of the others: L rows for every tile, since N divides
//         s / 2 * Cout. Row tiles go GROUP at a time past all columns, so that a weight tile is read from L2
// Loop    common/gemm.cuh's, over 2 * Cin: the guards are the zeros beyond the ends, rows beyond the last repeat it and
//         are not stored
// Flops   4 * B * L * Cin * s * Cout
// Bytes   (B * L * Cin + 2 * Cin * s * Cout + results * B * L * s * Cout) * itemsize
// Bound   tensor cores; memory at 128 channels
#include "common/gemm.cuh"
#include "common/guarded.cuh"
#include "common/snake.cuh"

constexpr int GROUP = 8;

// x, y and waved are at the first guard row of the first song and have ``guard`` rows around each song's L or s * L; y
// or waved may be null. A warp's 64 columns must be of one j: Cout is a multiple of 64. Grid: row tiles * s * Cout / N,
// 1, songs. Dynamic shared memory: (M + N) * BYTES * STAGES bytes.
template <typename T, int M, int N, int BYTES, int STAGES>
__device__ __forceinline__ void conv_transpose1d(const T* x, const T* weight, const T* bias, const float* alpha,
                                                 const float* inv_beta, T* y, T* waved, int L, int Cin, int Cout,
                                                 int s, int guard) {
  using Gemm = TileGemm<T, M, N, BYTES, STAGES, true>;
  constexpr int SIZE = sizeof(T);
  const int width = s * Cout, tiles = (L + M - 1) / M, in_group = GROUP * (width / N);
  const int group = blockIdx.x / in_group, within = blockIdx.x % in_group;
  const int high = tiles - group * GROUP < GROUP ? tiles - group * GROUP : GROUP;  // row tiles of this group
  const int tile = group * GROUP + within % high, column = within / high * N;
  const int half = width / 2, late = column < half, own = tile * M, live = L - own;  // late: rows 1 .. L

  const T* const from = x + (i64(blockIdx.z) * (L + 2 * guard) + own + late + guard) * Cin;
  const int steps = Cin * SIZE / BYTES;
  const Taps<BYTES> rows{reinterpret_cast<const unsigned char*>(from), Cin * SIZE, steps, -2 * Cin * SIZE, steps};
  Gemm gemm;
  gemm.run(Clipped<Taps<BYTES>>{rows, live - 1},
           Columns<T, BYTES>{reinterpret_cast<const unsigned char*>(weight + column), width * SIZE}, 2 * steps);

  const i64 song = (i64(blockIdx.z) * (i64(L) * s + 2 * guard) + guard) * Cout;
  const i64 start = song + i64(own) * width + (late ? column + half : column - half);  // late rows are a width further
  const int channel = (column + gemm.own_columns) % Cout + gemm.lane % 4 * 2;  // the thread's first; 8 j behind it
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float2 b = unpack2<T>(*reinterpret_cast<const u32*>(bias + channel + 8 * j));
#pragma unroll
    for (int i = 0; i < 8; i++) gemm.sums[i / 2][j][i % 2 * 2] += b.x, gemm.sums[i / 2][j][i % 2 * 2 + 1] += b.y;
  }
  if (y) gemm.write(y + start, width, live);
  if (waved) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float2 a = *reinterpret_cast<const float2*>(alpha + channel + 8 * j);
      const float2 b = *reinterpret_cast<const float2*>(inv_beta + channel + 8 * j);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        float(&v)[4] = gemm.sums[i / 2][j];
        const int e = i % 2 * 2;
        v[e] = snake_of(v[e], a.x, b.x), v[e + 1] = snake_of(v[e + 1], a.y, b.y);
      }
    }
    gemm.write(waved + start, width, live);
  }
  const bool first = own == 0 && column == 0, last = live <= M && column == 0;
  if (y) zero_guards<Gemm::THREADS>(y + song, Cout, L * s, guard, first, last);
  if (waved) zero_guards<Gemm::THREADS>(waved + song, Cout, L * s, guard, first, last);
}

// BLOCKS: on a multiprocessor, for which registers must suffice.
#define ENTRY(name, T, M, N, BYTES, STAGES, BLOCKS)                                                                  \
  extern "C" __global__ __launch_bounds__(M / 64 * (N / 64) * 32, BLOCKS) void name(                                 \
      const T* x, const T* weight, const T* bias, const float* alpha, const float* inv_beta, T* y, T* waved, int L,  \
      int Cin, int Cout, int s, int guard) {                                                                         \
    conv_transpose1d<T, M, N, BYTES, STAGES>(x, weight, bias, alpha, inv_beta, y, waved, L, Cin, Cout, s, guard);    \
  }
ENTRY(conv_transpose1d_n256_k64_bf16, bf16, 128, 256, 128, 3, 1)
ENTRY(conv_transpose1d_n256_k64_fp16, fp16, 128, 256, 128, 3, 1)
ENTRY(conv_transpose1d_n128_k64_bf16, bf16, 128, 128, 128, 2, 2)
ENTRY(conv_transpose1d_n128_k64_fp16, fp16, 128, 128, 128, 2, 2)
ENTRY(conv_transpose1d_n128_k32_bf16, bf16, 128, 128, 64, 3, 2)
ENTRY(conv_transpose1d_n128_k32_fp16, fp16, 128, 128, 64, 3, 2)
