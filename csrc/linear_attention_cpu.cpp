// ReLU linear attention on a CPU, position embedding included.
//
// Math     o[i] = sum_j w[i, j] v[j] / (sum_j w[i, j] + 1e-15),  w[i, j] = relu(r(q[i])) . relu(r(k[j])),  r mixes pairs; q
//          and k are rounded to bf16 after that, sums are fp32
// Tiling   a thread takes a head: its keys, turned, times its values, then a tile of queries at a time
// Bytes    q, k and v once in and o once out; a head's keys and values, packed, are read from the second or last cache
// Bound    the engine's products: 2 S D D for the state and 4 S D D for the rows
#include "cpu/linear_attention.h"
#include "cpu/pairs.h"

namespace LEVEL {

// qkv [batch, rows, 3, heads, D], the batch's and rows' distances given as of out [batch, rows, heads, D]; table
// [rows, 2, D]; rows from lengths[b] on are padding and become zeros.
void linear_attention(const bf16* qkv, long x_batch, long x_row, const float* table, const int64_t* lengths, bf16* out,
                      long y_batch, long y_row, long batch, long rows, int heads, int D, int threads) {
  in_parallel(batch * heads, threads, [=](long task) {
    const long b = task / heads, h = task % heads, width = heads * D;
    const long valid = lengths ? std::clamp<long>(lengths[b], 0, rows) : rows;
    const bf16* q = qkv + b * x_batch + h * D;
    bf16* o = out + b * y_batch + h * D;
    attend_linearly(q, q + width, q + 2 * width, x_row, valid, D, o, y_row, [=](const bf16* x, long row, int d) {
      const float* cos = table + row * 2 * D + d;
      return round_to_bf16(larger(mix_pairs(load(x + d), cos, cos + D), f32{}));
    });
    for (long row = valid; row < rows; row++) std::memset(o + row * y_row, 0, D * sizeof(bf16));
  });
}

}  // namespace LEVEL
