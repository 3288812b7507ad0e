// CUDA kernel of acefast.ops.qk_norm_rope (K02), for heads of 128.
//
// Math    u = x * rsqrt(mean(x^2) + eps) * weight; of its halves cat(u1 * cos - u2 * sin, u2 * cos + u1 * sin)
// Tiling  16 lanes have a token and HEADS heads of it, all of queries or all of keys; a lane 4 neighbours of every
//         head's first half and their partners in the second. cos, sin and the weights are read, and multiplied, once
//         for all HEADS. 4 columns are 8 bytes of 16-bit heads and 16 of an fp32 table: both fill their sectors
// Bytes   2 * R * (heads + kv_heads) * 128 * itemsize: queries and keys in and out; values are not touched
// Bound   memory, or latency below about 200 s of song
#include "common/vector.cuh"
#include "common/warp.cuh"

constexpr int D = 128, HALF = D / 2, LANES = HALF / 4, THREADS = 128;

// qkv and out have heads in succession, queries first, and may be the same memory; the numbers are from song to song
// and from row to row. cos and sin may both be null. Grid: THREADS / LANES of S rows, groups of HEADS heads, songs.
template <typename T, int HEADS>
__device__ __forceinline__ void qk_norm_rope(const T* qkv, const T* q_weight, const T* k_weight, const float* cos,
                                             const float* sin, T* out, int S, int heads, i64 qkv_song, i64 qkv_row,
                                             i64 out_song, i64 out_row, i64 cos_row, i64 sin_row, float eps) {
  const int row = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES, column = threadIdx.x % LANES * 4;
  const int head = blockIdx.y * HEADS;
  const bool live = row < S;  // beyond the last row there are zeros: all lanes of a warp take part in its sums
  qkv += blockIdx.z * qkv_song + row * qkv_row + head * D + column;
  float a[HEADS][4] = {}, b[HEADS][4] = {}, c[4] = {1, 1, 1, 1}, s[4] = {};
#pragma unroll
  for (int i = 0; i < HEADS; i++)
    if (live) load4(qkv + i * D, a[i]), load4(qkv + i * D + HALF, b[i]);
  if (cos && live) load4(cos + row * cos_row + column, c), load4(sin + row * sin_row + column, s);

  // first = a * weights[0] - b * weights[1] and second = b * weights[2] + a * weights[3], both over the RMS
  const T* weight = (head < heads ? q_weight : k_weight) + column;
  float weights[4][4];
  load4(weight, weights[0]), load4(weight + HALF, weights[2]);
#pragma unroll
  for (int e = 0; e < 4; e++) {
    weights[1][e] = weights[2][e] * s[e], weights[3][e] = weights[0][e] * s[e];
    weights[0][e] *= c[e], weights[2][e] *= c[e];
  }

  out += blockIdx.z * out_song + row * out_row + head * D + column;
#pragma unroll
  for (int i = 0; i < HEADS; i++) {
    float squares = 0, first[4], second[4];
#pragma unroll
    for (int e = 0; e < 4; e++) squares = __fmaf_rn(a[i][e], a[i][e], __fmaf_rn(b[i][e], b[i][e], squares));
    const float inverse_rms = rsqrtf(warp_sum<LANES>(squares) * (1.0f / D) + eps);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      first[e] = __fmaf_rn(-b[i][e], weights[1][e], a[i][e] * weights[0][e]) * inverse_rms;
      second[e] = __fmaf_rn(a[i][e], weights[3][e], b[i][e] * weights[2][e]) * inverse_rms;
    }
    if (live) store4(out + i * D, first), store4(out + i * D + HALF, second);
  }
}

#define ENTRY(name, T, HEADS)                                                                                       \
  extern "C" __global__ __launch_bounds__(THREADS) void name(                                                       \
      const T* qkv, const T* q_weight, const T* k_weight, const float* cos, const float* sin, T* out, int S,        \
      int heads, i64 qkv_song, i64 qkv_row, i64 out_song, i64 out_row, i64 cos_row, i64 sin_row, float eps) {       \
    qk_norm_rope<T, HEADS>(qkv, q_weight, k_weight, cos, sin, out, S, heads, qkv_song, qkv_row, out_song, out_row,  \
                           cos_row, sin_row, eps);                                                                  \
  }
ENTRY(qk_norm_rope_h4_bf16, bf16, 4)
ENTRY(qk_norm_rope_h4_fp16, fp16, 4)
