// Self-attention on a CPU, over everything, over a window or over what came before.
//
// Math     o[i] = sum_j p[i, j] v[j],  p = softmax over i - before <= j <= i + after of q[i] . k[j] / sqrt(D)
//          both products of bf16 numbers in fp32, p rounded to bf16 between them, its sums in fp32
// Tiling   keys and values are packed once; a thread takes 96 queries, of all heads of a key head, past 512 keys at a
//          time, of which each tile of rows multiplies those in its window, in whole blocks of 32
// Bytes    q, k, v and o once; packed keys and values once for each 96 queries, from the last cache
// Bound    the engine's products: 4 S D a head and key that a row sees
#include "cpu/attention.h"

namespace LEVEL {

void self_attention(const bf16* q, const long* q_strides, const bf16* k, const long* k_strides, const bf16* v,
                    const long* v_strides, const int64_t* lengths, bf16* out, const long* out_strides, long batch,
                    long rows, int heads, int kv_heads, int D, long before, long after, bool pad_rows,
                    int threads) {
  attend({batch, rows, rows, batch, kv_heads, heads / kv_heads, D, {q, q_strides}, {k, k_strides}, {v, v_strides},
          lengths, before, after, pad_rows ? Padding::LOOKS : Padding::ZEROS, out, out_strides},
         threads, [=](const bf16* x, bf16* u) { std::memcpy(u, x, D * sizeof(bf16)); });
}

}  // namespace LEVEL
