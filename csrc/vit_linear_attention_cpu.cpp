// ReLU linear attention of an image's places on a CPU.
//
// Math     o[i] = sum_j w[i, j] v[j] / (sum_j w[i, j] + 1e-15),  w[i, j] = relu(q[i]) . relu(k[j])      sums in fp32
// Tiling   a thread takes a head: its keys, turned, times its values, then a tile of queries at a time
// Bytes    q, k and v once in and o once out; a head's keys and values, packed, are read from the second or last cache
// Bound    the engine's products: 2 P D D for the state and 4 P D D for the places
#include "cpu/linear_attention.h"

namespace LEVEL {

// x [batch, places, heads, 3, D], the batch's and places' distances given as of out [batch, places, heads, D].
void vit_linear_attention(const bf16* x, long x_batch, long x_row, bf16* out, long y_batch, long y_row, long batch,
                          long places, int heads, int D, int threads) {
  in_parallel(batch * heads, threads, [=](long task) {
    const long b = task / heads, h = task % heads;
    const bf16* q = x + b * x_batch + h * 3 * D;
    attend_linearly(q, q + D, q + 2 * D, x_row, places, D, out + b * y_batch + h * D, y_row,
                    [](const bf16* x, long, int d) { return larger(load(x + d), f32{}); });
  });
}

}  // namespace LEVEL
