// CUDA kernel of acefast.ops.cross_attention (K04), for heads of 128 channels.
//
// Math    u = q rsqrt(mean(q^2) + eps) w / sqrt(128) per head, rounded; softmax(u k^T) v over the keys j < length
// Tiling  a block has 128 rows: all heads that share a key head at 128 / heads positions. See common/attention.cuh; no
//         window hides a key, so that only the last keys are compared with the length
// Flops   4 * B * heads * 128 * S * length
// Bytes   (2 * B * S * heads + 2 * B * length * kv_heads) * 128 * itemsize: q, k, v in, out; keys and values stay in L2
// Bound   tensor cores. Per 16 keys of a block: 512 cycles of mma, 256 of shared memory, on sm_80
#include "common/attention.cuh"

// The norm of rows that 16 lanes hold, 8 channels each.
template <typename T>
struct Norm {
  float weight[8], eps;

  __device__ __forceinline__ Norm(const T* weights, float scale, float eps) : eps(eps) {
    unpack<T>(load16(weights + threadIdx.x % 16 * 8), weight);
#pragma unroll
    for (int i = 0; i < 8; i++) weight[i] *= scale;  // the softmax's scale rides on the norm's weight
  }

  __device__ __forceinline__ uint4 operator()(uint4 chunk) const {
    float v[8], square = 0;
    unpack<T>(chunk, v);
#pragma unroll
    for (int i = 0; i < 8; i++) square += v[i] * v[i];
    const float norm = rsqrtf(warp_sum<16>(square) * (1.0f / 128) + eps);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * norm * weight[i];
    return pack<T>(v);
  }
};

// Lengths are every ``length_step``-th number of 32 bits, the low half of one of 64 bits; null: all E keys count.
// Strides are elements, 0 where songs share keys. Grid: tiles, key heads, songs. Dynamic shared memory: STAGES * PIECE
// bytes.
template <typename T>
__device__ __forceinline__ void cross_attention(const T* q, const T* weight, const T* k, const T* v,
                                                const int* lengths, T* out, int S, int E, int group_bits, float eps,
                                                float scale, int length_step, int q_row, int k_row, int v_row,
                                                int out_row, i64 q_batch, i64 k_batch, i64 k_head, i64 v_batch,
                                                i64 v_head, i64 out_batch) {
  constexpr int EVERYTHING = 1 << 28;
  const int b = blockIdx.z, key_head = blockIdx.y, head = (key_head * 128) << group_bits;
  int length = E;
  if (lengths && lengths[i64(b) * length_step] < E) length = lengths[i64(b) * length_step];
  Attention<T> tile(group_bits, EVERYTHING, length, 1);
  tile.run(q + b * q_batch + head, k + b * k_batch + key_head * k_head, v + b * v_batch + key_head * v_head,
           out + b * out_batch + head, q_row, k_row, v_row, out_row, S, S, Norm<T>(weight, scale, eps));
}

#define ENTRY(name, T)                                                                                               \
  extern "C" __global__ __launch_bounds__(128, 2) void name(                                                         \
      const T* q, const T* weight, const T* k, const T* v, const int* lengths, T* out, int S, int E, int group_bits, \
      float eps, float scale, int length_step, int q_row, int k_row, int v_row, int out_row, i64 q_batch,            \
      i64 k_batch, i64 k_head, i64 v_batch, i64 v_head, i64 out_batch) {                                             \
    cross_attention<T>(q, weight, k, v, lengths, out, S, E, group_bits, eps, scale, length_step, q_row, k_row,       \
                       v_row, out_row, q_batch, k_batch, k_head, v_batch, v_head, out_batch);                        \
  }
ENTRY(cross_attention_bf16, bf16)
ENTRY(cross_attention_fp16, fp16)
