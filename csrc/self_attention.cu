// CUDA kernel of acefast.ops.self_attention with a window (K03), for heads of 128 channels.
//
// Math    softmax(q k^T / sqrt(128)) v over the keys with |i - j| <= window and j < length; rows from length on are 0
// Tiling  a block has 128 rows: all heads that share a key head at 128 / heads positions. See common/attention.cuh
// Flops   4 * B * heads * 128 * S * (2 * window + 1), less what the song's ends cut off
// Bytes   2 * B * S * (heads + kv_heads) * 128 * itemsize: q, k, v in, out; keys and values come from L2 later
// Bound   tensor cores. Per 16 keys of a block: 512 cycles of mma, 256 of shared memory, on sm_80
#include "common/attention.cuh"

// Lengths are every ``length_step``-th number of 32 bits, the low half of one of 64 bits; null: all rows count. Strides
// are elements. Grid: tiles, key heads, songs. Dynamic shared memory: STAGES * PIECE bytes.
template <typename T>
__device__ __forceinline__ void self_attention(const T* q, const T* k, const T* v, const int* lengths, T* out, int S,
                                               int group_bits, int window, float scale, int length_step, int q_row,
                                               int k_row, int v_row, int out_row, i64 q_batch, i64 k_batch,
                                               i64 v_batch, i64 out_batch) {
  const int b = blockIdx.z, key_head = blockIdx.y * 128, head = key_head << group_bits;
  int length = S;
  if (lengths && lengths[i64(b) * length_step] < S) length = lengths[i64(b) * length_step];
  Attention<T> tile(group_bits, window, length, scale);
  tile.run(q + b * q_batch + head, k + b * k_batch + key_head, v + b * v_batch + key_head, out + b * out_batch + head,
           q_row, k_row, v_row, out_row, length, S, [](uint4 chunk) { return chunk; });
}

#define ENTRY(name, T)                                                                                               \
  extern "C" __global__ __launch_bounds__(128, 2) void name(                                                         \
      const T* q, const T* k, const T* v, const int* lengths, T* out, int S, int group_bits, int window,             \
      float scale, int length_step, int q_row, int k_row, int v_row, int out_row, i64 q_batch, i64 k_batch,          \
      i64 v_batch, i64 out_batch) {                                                                                  \
    self_attention<T>(q, k, v, lengths, out, S, group_bits, window, scale, length_step, q_row, k_row, v_row,         \
                      out_row, q_batch, k_batch, v_batch, out_batch);                                                \
  }
ENTRY(self_attention_bf16, bf16)
ENTRY(self_attention_fp16, fp16)
