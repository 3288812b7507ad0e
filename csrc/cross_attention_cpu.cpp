// Cross-attention on a CPU, with the norm of its queries.
//
// Math     o[i] = sum_j p[i, j] v[j],  p = softmax of u[i] . k[j] / sqrt(D),  u = q rsqrt(mean(q^2) + eps) weight, or q
//          where there is no weight; u is rounded to bf16, the rest as in self_attention_cpu.cpp
// Tiling   as there; a query is normed as it is copied beside the others of its block
// Bytes    q, k, v and o once; packed keys and values once for each 96 queries, from the last cache
// Bound    the engine's products: 4 S E D a head
#include "cpu/attention.h"
#include "cpu/head_norm.h"

namespace LEVEL {

void cross_attention(const bf16* q, const long* q_strides, const bf16* q_weight, const bf16* k, const long* k_strides,
                     const bf16* v, const long* v_strides, const int64_t* lengths, bf16* out, const long* out_strides,
                     long batch, long sets, long rows, long keys, int heads, int kv_heads, int D, float eps,
                     int threads) {
  attend({batch, rows, keys, sets, kv_heads, heads / kv_heads, D, {q, q_strides}, {k, k_strides}, {v, v_strides},
          lengths, rows, keys, Padding::KEYS_ONLY, out, out_strides},
         threads, [=](const bf16* x, bf16* u) {
           if (!q_weight) return void(std::memcpy(u, x, D * sizeof(bf16)));
           const float inverse = inverse_rms(x, D, eps);
           for (int d = 0; d < D; d += LANES) store(u + d, load(x + d) * inverse * load(q_weight + d));
         });
}

}  // namespace LEVEL
