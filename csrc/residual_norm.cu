// CUDA kernel of acefast.ops.residual_norm (K01).
//
// Math    x' = x + gate * y, rounded to x's type; h = x' * rsqrt(mean(x'^2) + eps) * weight * (1 + scale) + shift
// Tiling  a block has ROWS rows of a song, which stay in registers; a thread has 2 pieces of 4 neighbouring columns of
//         each, half a row apart, and loads what the vectors have there once. 4 columns are 8 bytes of 16-bit rows and
//         16 of fp32 ones: both fill their sectors. All loads are under way before the first sum
// Bytes   4 * R * H * itemsize: x and y in, x' and h out; the vectors come from L2, once per block
// Bound   memory beyond about 70 s of song, latency below
#include "common/rows.cuh"
#include "common/vector.cuh"

constexpr int PIECES = 2;

// 4 columns of a vector, or ``other`` where there is none.
template <typename T>
__device__ __forceinline__ void vector4(float (&v)[4], const T* from, float other) {
  v[0] = v[1] = v[2] = v[3] = other;
  if (from) load4(from, v);
}

// x, y, stream (for x', may be x) and h have S rows a song; the numbers are from song to song and from row to row. All
// but x and h may be null. Where step is not null, gate, scale and shift are tables, and it has the number of the row.
// Grid: ROWS rows, songs. H / 8 threads, which are whole warps; ROWS * 4 bytes of dynamic shared memory for each warp.
template <typename X, typename T, int ROWS>
__device__ __forceinline__ void residual_norm(const X* x, const T* y, const T* weight, const float* gate,
                                              const float* scale, const float* shift, const int* step, X* stream, T* h,
                                              int S, i64 x_song, i64 x_row, i64 y_song, i64 y_row, i64 stream_song,
                                              i64 stream_row, i64 h_song, i64 h_row, i64 gate_row, i64 scale_row,
                                              i64 shift_row, float inverse_h, float eps) {
  const int apart = blockDim.x * 4, own = threadIdx.x * 4, first = blockIdx.x * ROWS;
  float v[ROWS][PIECES][4], added[ROWS][PIECES][4];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const i64 row = min(first + r, S - 1), column = own + p * apart;  // beyond the last row it once more
      load4(x + blockIdx.y * x_song + row * x_row + column, v[r][p]);
      if (y) load4(y + blockIdx.y * y_song + row * y_row + column, added[r][p]);
    }
  const i64 at = step ? *step : 0;
  float gates[PIECES][4], factors[PIECES][4], shifts[PIECES][4];
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    const int column = own + p * apart;
    float scales[4];
    vector4(gates[p], gate ? gate + at * gate_row + column : gate, 1);
    vector4(factors[p], weight ? weight + column : weight, 1);
    vector4(scales, scale ? scale + at * scale_row + column : scale, 0);
    vector4(shifts[p], shift ? shift + at * shift_row + column : shift, 0);
#pragma unroll
    for (int e = 0; e < 4; e++) factors[p][e] *= 1 + scales[e];
  }

  float squares[ROWS] = {};
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      if (y) {
#pragma unroll
        for (int e = 0; e < 4; e++) v[r][p][e] = __fmaf_rn(gates[p][e], added[r][p][e], v[r][p][e]);
        round4<X>(v[r][p]);
        if (stream && first + r < S)
          store4(stream + blockIdx.y * stream_song + (first + r) * stream_row + own + p * apart, v[r][p]);
      }
#pragma unroll
      for (int e = 0; e < 4; e++) squares[r] = __fmaf_rn(v[r][p][e], v[r][p][e], squares[r]);
    }
  block_sum(squares);

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (first + r >= S) break;
    const float inverse_rms = rsqrtf(squares[r] * inverse_h + eps);
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      float result[4];
#pragma unroll
      for (int e = 0; e < 4; e++) result[e] = __fmaf_rn(v[r][p][e] * inverse_rms, factors[p][e], shifts[p][e]);
      store4(h + blockIdx.y * h_song + (first + r) * h_row + own + p * apart, result);
    }
  }
}

#define ENTRY(name, X, T, ROWS)                                                                                       \
  extern "C" __global__ __launch_bounds__(512) void name(                                                             \
      const X* x, const T* y, const T* weight, const float* gate, const float* scale, const float* shift,             \
      const int* step, X* stream, T* h, int S, i64 x_song, i64 x_row, i64 y_song, i64 y_row, i64 stream_song,         \
      i64 stream_row, i64 h_song, i64 h_row, i64 gate_row, i64 scale_row, i64 shift_row, float inverse_h,             \
      float eps) {                                                                                                    \
    residual_norm<X, T, ROWS>(x, y, weight, gate, scale, shift, step, stream, h, S, x_song, x_row, y_song, y_row,     \
                              stream_song, stream_row, h_song, h_row, gate_row, scale_row, shift_row, inverse_h,      \
                              eps);                                                                                   \
  }
ENTRY(residual_norm_r2_bf16, bf16, bf16, 2)
ENTRY(residual_norm_r2_fp32_bf16, float, bf16, 2)
ENTRY(residual_norm_r2_fp32_fp16, float, fp16, 2)
ENTRY(residual_norm_r4_bf16, bf16, bf16, 4)
ENTRY(residual_norm_r4_fp32_bf16, float, bf16, 4)
ENTRY(residual_norm_r4_fp32_fp16, float, fp16, 4)
