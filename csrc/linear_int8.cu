// CUDA kernel of acefast.ops.linear_int8 (K14): a GEMM of 8-bit integers with a scaling epilogue.
//
// Math    y = (x @ weight.T) * x_scale[r] * weight_scale[n] + bias[n]; out = y, silu(y gate) * (y up) or out + gate[n] * y.
//         Sums are exact, the epilogue is fp32, rounded once
// Tiling  a block has M rows of N outputs, a warp 64 x 64. Row tiles go GROUP at a time past all outputs, so that a
//         weight tile is read from L2. With SwiGLU a warp's 64 outputs are 32 gates and the 32 that they meet: a thread
//         has 8 neighbours of both
// Loop    common/gemm.cuh's: 128 of K at a time, an mma takes 32. Rows beyond the last repeat it and are not stored
// Flops   2 * R * N * K, of integers
// Bytes   R * K + N * K + 4 * (R + N) + R * N * itemsize; half of the last with SwiGLU, twice it in place
// Bound   tensor cores from about 400 rows, below that the weight's bytes
#include "common/gemm.cuh"
#include "common/vector.cuh"

constexpr int GROUP = 8, BYTES = 128;

// A tile's rows of the weight: blocks of 32, ``odd`` rows from one of even number to the next and ``pair`` between two of
// those.
struct Blocks {
  const unsigned char* first;
  const int stride, pair, odd;

  __device__ __forceinline__ const unsigned char* row(int r) const {
    return first + i64(r % 32 + r / 64 * pair + r / 32 % 2 * odd) * stride;
  }
  __device__ __forceinline__ void next() { first += BYTES; }
};

__device__ __forceinline__ float silu(float x) {
  return __fdividef(x, 1 + ptx::exp2_approx(x * -1.4426950408889634f));
}

// The factors and the summands of 8 neighbouring outputs.
struct Scales {
  float weight[8], bias[8];

  __device__ __forceinline__ Scales(const float* weights, const float* biases, int n) {
    load8(weights + n, weight);
#pragma unroll
    for (int e = 0; e < 8; e++) bias[e] = 0;
    if (biases) load8(biases + n, bias);
  }

  __device__ __forceinline__ float apply(int sum, float x_scale, int e) const {
    return __fmaf_rn(__fmul_rn(float(sum), x_scale), weight[e], bias[e]);
  }
};

// x [R, K], weight [O, K] and out are contiguous; bias, gate and step may be null. ``swiglu``: the first half of O are
// gates; ``add``: out is added to, and row step[0] of gate is used, ``gate_row`` apart. K is a multiple of BYTES, O of N.
// Grid: row tiles * O / N. Dynamic shared memory: (M + N) * BYTES * STAGES bytes.
template <typename T, int M, int N, int STAGES>
__device__ __forceinline__ void linear_int8(const int8* x, const float* x_scale, const int8* weight,
                                            const float* weight_scale, const float* bias, const float* gate,
                                            const int* step, T* out, i64 gate_row, int R, int K, int O, int swiglu,
                                            int add) {
  using Gemm = TileGemm<int8, M, N, BYTES, STAGES>;
  const int tiles = (R + M - 1) / M, in_group = GROUP * (O / N);
  const int group = blockIdx.x / in_group, within = blockIdx.x % in_group;
  const int high = tiles - group * GROUP < GROUP ? tiles - group * GROUP : GROUP;  // row tiles of this group
  const int own = (group * GROUP + within % high) * M, live = R - own;
  const int width = swiglu ? O / 2 : O, first = within / high * (swiglu ? N / 2 : N);  // of a row of out; of this tile

  const Matrix<BYTES> rows{reinterpret_cast<const unsigned char*>(x + i64(own) * K), K};
  const Blocks columns{reinterpret_cast<const unsigned char*>(weight + i64(first) * K), K, swiglu ? 32 : 64,
                       swiglu ? width : 32};
  Gemm gemm;
  gemm.run(Clipped<Matrix<BYTES>>(rows, live - 1), columns, K / BYTES);

  x_scale += own, out += i64(own) * width;
  int sums[8];
  if (swiglu) {
    const int n = first + gemm.channel(0) - gemm.own_columns / 2;
    const Scales gates(weight_scale, bias, n), ups(weight_scale, bias, width + n);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = gemm.row(i);
      if (row >= live) break;
      const float scale = x_scale[row];
      float v[8];
      gemm.share(0, i, sums);
#pragma unroll
      for (int e = 0; e < 8; e++) v[e] = silu(gates.apply(sums[e], scale, e));
      gemm.share(1, i, sums);
#pragma unroll
      for (int e = 0; e < 8; e++) v[e] *= ups.apply(sums[e], scale, e);
      store16(out + i64(row) * width + n, pack<T>(v));
    }
    return;
  }
#pragma unroll
  for (int q = 0; q < 2; q++) {
    const int n = first + gemm.channel(q);
    const Scales scales(weight_scale, bias, n);
    float gates[8];
#pragma unroll
    for (int e = 0; e < 8; e++) gates[e] = 1;
    if (gate) load8(gate + (step ? *step * gate_row : 0) + n, gates);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = gemm.row(i);
      if (row >= live) break;
      T* const to = out + i64(row) * width + n;
      float v[8], before[8];
      gemm.share(q, i, sums);
#pragma unroll
      for (int e = 0; e < 8; e++) v[e] = scales.apply(sums[e], x_scale[row], e);
      if (add) {
        load8(to, before);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] = __fmaf_rn(gates[e], v[e], before[e]);
      }
      store16(to, pack<T>(v));
    }
  }
}

// BLOCKS: on a multiprocessor, for which registers must suffice.
#define ENTRY(name, T, M, N, STAGES, BLOCKS)                                                                      \
  extern "C" __global__ __launch_bounds__(M / 64 * (N / 64) * 32, BLOCKS) void name(                              \
      const int8* x, const float* x_scale, const int8* weight, const float* weight_scale, const float* bias,      \
      const float* gate, const int* step, T* out, i64 gate_row, int R, int K, int O, int swiglu, int add) {       \
    linear_int8<T, M, N, STAGES>(x, x_scale, weight, weight_scale, bias, gate, step, out, gate_row, R, K, O,      \
                                 swiglu, add);                                                                    \
  }
ENTRY(linear_int8_m128_n256_bf16, bf16, 128, 256, 3, 1)
ENTRY(linear_int8_m128_n256_fp16, fp16, 128, 256, 3, 1)
ENTRY(linear_int8_m128_n128_bf16, bf16, 128, 128, 2, 2)
ENTRY(linear_int8_m128_n128_fp16, fp16, 128, 128, 2, 2)
