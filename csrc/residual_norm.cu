// CUDA kernel of acefast.ops.residual_norm (K01), for rows of 2048 and 2560.
//
// Math    x' = x + gate * y, rounded to x's type; h = x' * rsqrt(mean(x'^2) + eps) * weight * (1 + scale) + shift
// Tiling  a block has ROWS rows, which stay in registers, and as many warps, each with its part of all of them, so that
//         a vector is read once for ROWS. A lane has 4 neighbours of every APART columns: 8 bytes of 16-bit rows and 16
//         of fp32 ones or vectors, which fill their sectors. All of x and y is under way before the first sum
// Bytes   4 * R * H * itemsize: x and y in, x' and h out; the vectors come from L1 after a multiprocessor's first rows
// Bound   memory beyond about 70 s of song, latency below
#include "common/rows.cuh"
#include "common/vector.cuh"

constexpr int ROWS = 2, APART = ROWS * 32 * 4;
constexpr int GROUP = 3;  // pieces whose vectors are under way at once

// Makes x' of x, stores it where it is to be STORED, and adds up its squares. The numbers lead from row to row.
template <bool GATED, bool STORED, int PIECES, typename X, typename T>
__device__ __forceinline__ void add(float (&v)[ROWS][PIECES][4], const Four<X> (&x)[ROWS][PIECES],
                                    const Four<T> (&y)[ROWS][PIECES], const float* gate, X* stream, i64 stream_row,
                                    float (&squares)[ROWS][2]) {
#pragma unroll
  for (int first = 0; first < PIECES; first += GROUP) {
    Four<float> gates[GROUP];
#pragma unroll
    for (int p = first; p < PIECES && p < first + GROUP; p++)
      if (GATED) gates[p - first] = four(gate + p * APART);
#pragma unroll
    for (int p = first; p < PIECES && p < first + GROUP; p++) {
      float factors[4] = {1, 1, 1, 1};
      if (GATED) unpack4(gates[p - first], factors);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float added[4];
        unpack4(x[r][p], v[r][p]), unpack4(y[r][p], added);
#pragma unroll
        for (int e = 0; e < 4; e++) v[r][p][e] = __fmaf_rn(factors[e], added[e], v[r][p][e]);
        const Four<X> rounded = pack4<X>(v[r][p]);
        if (STORED) store4(stream + r * stream_row + p * APART, rounded);
        unpack4(rounded, v[r][p]);
#pragma unroll
        for (int e = 0; e < 4; e++) squares[r][e % 2] = __fmaf_rn(v[r][p][e], v[r][p][e], squares[r][e % 2]);
      }
    }
  }
}

template <bool WEIGHED, bool MODULATED, int PIECES, typename T>
__device__ __forceinline__ void norm(const float (&v)[ROWS][PIECES][4], const float (&inverse_rms)[ROWS],
                                     const T* weight, const float* scale, const float* shift, T* h, i64 h_row) {
#pragma unroll
  for (int first = 0; first < PIECES; first += GROUP) {
    Four<T> weights[GROUP];
    Four<float> scales[GROUP], shifts[GROUP];
#pragma unroll
    for (int p = first; p < PIECES && p < first + GROUP; p++) {
      if (WEIGHED) weights[p - first] = four(weight + p * APART);
      if (MODULATED) scales[p - first] = four(scale + p * APART), shifts[p - first] = four(shift + p * APART);
    }
#pragma unroll
    for (int p = first; p < PIECES && p < first + GROUP; p++) {
      float factors[4] = {1, 1, 1, 1}, more[4] = {}, offsets[4] = {};
      if (WEIGHED) unpack4(weights[p - first], factors);
      if (MODULATED) unpack4(scales[p - first], more), unpack4(shifts[p - first], offsets);
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (MODULATED) factors[e] = __fmaf_rn(factors[e], more[e], factors[e]);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float result[4];
#pragma unroll
        for (int e = 0; e < 4; e++)
          result[e] = __fmaf_rn(v[r][p][e] * inverse_rms[r], factors[e], offsets[e]);
        store4(h + r * h_row + p * APART, result);
      }
    }
  }
}

// x, y, stream (for x', may be x) and h have S rows a song; the numbers are from song to song and from row to row. All
// but x and h may be null, scale and shift together. Where step is not null, gate, scale and shift are tables, and it
// has the number of the row. Grid: ROWS rows, songs. 32 * ROWS threads; ROWS * ROWS * 4 bytes of dynamic shared memory.
template <int H, typename X, typename T>
__device__ __forceinline__ void residual_norm(const X* x, const T* y, const T* weight, const float* gate,
                                              const float* scale, const float* shift, const int* step, X* stream, T* h,
                                              int S, i64 x_song, i64 x_row, i64 y_song, i64 y_row, i64 stream_song,
                                              i64 stream_row, i64 h_song, i64 h_row, i64 gate_row, i64 scale_row,
                                              i64 shift_row, float eps) {
  constexpr int PIECES = H / APART;
  const int own = threadIdx.x * 4, song = blockIdx.y, row = blockIdx.x * ROWS;
  const bool twice = row + 1 == S;  // the last row: both write the same
  const i64 at = step ? *step : 0;
  Four<X> before[ROWS][PIECES];
  float v[ROWS][PIECES][4], squares[ROWS][2] = {}, inverse_rms[ROWS];
  x += song * x_song + row * x_row + own;
  if (twice) x_row = 0;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int p = 0; p < PIECES; p++) before[r][p] = four(x + r * x_row + p * APART);
  if (y) {
    Four<T> added[ROWS][PIECES];
    y += song * y_song + row * y_row + own;
    if (twice) y_row = 0;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int p = 0; p < PIECES; p++) added[r][p] = four(y + r * y_row + p * APART);
    if (gate) gate += at * gate_row + own;
    if (stream) stream += song * stream_song + row * stream_row + own;
    if (twice) stream_row = 0;
    if (gate && stream)
      add<true, true>(v, before, added, gate, stream, stream_row, squares);
    else if (gate)
      add<true, false>(v, before, added, gate, stream, stream_row, squares);
    else if (stream)
      add<false, true>(v, before, added, gate, stream, stream_row, squares);
    else
      add<false, false>(v, before, added, gate, stream, stream_row, squares);
  } else {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int p = 0; p < PIECES; p++) {
        unpack4(before[r][p], v[r][p]);
#pragma unroll
        for (int e = 0; e < 4; e++) squares[r][e % 2] = __fmaf_rn(v[r][p][e], v[r][p][e], squares[r][e % 2]);
      }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) inverse_rms[r] = squares[r][0] + squares[r][1];
  block_sum<ROWS>(inverse_rms);
#pragma unroll
  for (int r = 0; r < ROWS; r++) inverse_rms[r] = rsqrtf(inverse_rms[r] * (1.0f / H) + eps);

  h += song * h_song + row * h_row + own;
  if (twice) h_row = 0;
  if (weight) weight += own;
  if (scale) scale += at * scale_row + own, shift += at * shift_row + own;
  if (weight && scale)
    norm<true, true>(v, inverse_rms, weight, scale, shift, h, h_row);
  else if (scale)
    norm<false, true>(v, inverse_rms, weight, scale, shift, h, h_row);
  else if (weight)
    norm<true, false>(v, inverse_rms, weight, scale, shift, h, h_row);
  else
    norm<false, false>(v, inverse_rms, weight, scale, shift, h, h_row);
}

// At most 128 registers of 16-bit rows, 168 of fp32 ones: 16 or 12 rows on a multiprocessor at once.
#define ENTRY(name, H, X, T)                                                                                         \
  extern "C" __global__ __launch_bounds__(32 * ROWS, sizeof(X) == 4 ? 6 : 8) void name(                              \
      const X* x, const T* y, const T* weight, const float* gate, const float* scale, const float* shift,            \
      const int* step, X* stream, T* h, int S, i64 x_song, i64 x_row, i64 y_song, i64 y_row, i64 stream_song,        \
      i64 stream_row, i64 h_song, i64 h_row, i64 gate_row, i64 scale_row, i64 shift_row, float eps) {                \
    residual_norm<H>(x, y, weight, gate, scale, shift, step, stream, h, S, x_song, x_row, y_song, y_row,             \
                     stream_song, stream_row, h_song, h_row, gate_row, scale_row, shift_row, eps);                   \
  }
ENTRY(residual_norm_h2048_bf16, 2048, bf16, bf16)
ENTRY(residual_norm_h2048_fp32_bf16, 2048, float, bf16)
ENTRY(residual_norm_h2048_fp32_fp16, 2048, float, fp16)
ENTRY(residual_norm_h2560_bf16, 2560, bf16, bf16)
ENTRY(residual_norm_h2560_fp32_bf16, 2560, float, bf16)
ENTRY(residual_norm_h2560_fp32_fp16, 2560, float, fp16)
