// ReLU linear attention on a CPU, position embedding included.
//
// Math     o[i] = q[i] . state / (q[i] . sum + 1e-15),  state = sum_j k[j]^T v[j],  sum = sum_j k[j], of q and k that are
//          mixed by pairs, kept where positive and rounded to bf16; sums in fp32, the state as the sum of two bf16 numbers
// Tiling   a thread takes a head: its keys, turned, times its values, then a tile of queries at a time
// Bytes    q, k and v once in and o once out; a head's keys and values, packed, are read from the second or last cache
// Bound    the engine's products: 2 S D D for the state and 4 S D D for the rows
#include <algorithm>

#include "cpu/machine.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace LEVEL {
namespace {

constexpr int WIDEST = 128;  // head

// 16 mixed and rounded numbers of a row, none of them negative.
inline f32 mixed(const bf16* x, const float* cos, int D) {
  return round_to_bf16(larger(mix_pairs(load(x), cos, cos + D), f32{}));
}

}  // namespace

// qkv [batch, rows, 3, heads, D], the batch's and rows' distances given as of out [batch, rows, heads, D]; table
// [rows, 2, D]; rows from lengths[b] on are padding and become zeros.
void linear_attention(const bf16* qkv, long x_batch, long x_row, const float* table, const int64_t* lengths, bf16* out,
                      long y_batch, long y_row, long batch, long rows, int heads, int D, int threads) {
  const Engine& e = engine();
  in_parallel(batch * heads, threads, [=, &e](long task) {
    static thread_local Scratch turned, packed;
    const long b = task / heads, h = task % heads, width = heads * D;
    const long valid = lengths ? std::clamp<long>(lengths[b], 0, rows) : rows;
    const long K = std::max<long>((valid + K_STEP - 1) / K_STEP * K_STEP, K_STEP), apart = K + COLUMNS;
    const bf16 *q = qkv + b * x_batch + h * D, *k = q + width, *v = k + width;
    bf16* keys = turned.get<bf16>(D * apart);
    char* values = packed.get<char>(std::max(e.packed(K), D / COLUMNS * 2 * e.packed(D)));
    alignas(64) float sum[WIDEST] = {}, c[MOST_ROWS * COLUMNS];
    alignas(64) bf16 state[2][WIDEST * WIDEST];  // its two parts
    for (int d = 0; d < D; d += LANES) {
      f32 total = {};
      for (long row = 0; row < K; row++) {
        bf16 one[LANES] = {};
        if (row < valid) {
          const f32 key = mixed(k + row * x_row + d, table + row * 2 * D + d, D);
          total += key, store(one, key);
        }
        for (int i = 0; i < LANES; i++) keys[(d + i) * apart + row] = one[i];
      }
      store(sum + d, total);
    }
    for (int column = 0; column < D; column += COLUMNS) {
      e.pack_columns(v + column, x_row, COLUMNS, int(valid), int(K), values);
      for (int d = 0; d < D; d += e.rows) {
        const int count = std::min(e.rows, D - d);
        e.tile(keys + d * apart, apart, 0, 1, int(K), values, c, count);
        for (int i = 0; i < count * COLUMNS; i += LANES) {
          const f32 exact = load(c + i), high = round_to_bf16(exact);
          const long at = (d + i / COLUMNS) * D + column + i % COLUMNS;
          store(state[0] + at, high), store(state[1] + at, exact - high);
        }
      }
    }
    bf16* o = out + b * y_batch + h * D;
    for (int column = 0; column < D; column += COLUMNS)
      for (int part = 0; part < 2; part++)
        e.pack_columns(state[part] + column, D, COLUMNS, D, D, values + (column / COLUMNS * 2 + part) * e.packed(D));
    for (long first = 0; first < valid; first += e.rows) {
      const int count = int(std::min<long>(e.rows, valid - first));
      alignas(64) bf16 queries[MOST_ROWS * (WIDEST + COLUMNS)];
      float weight[MOST_ROWS];
      for (int r = 0; r < count; r++) {
        f32 total = {};
        for (int d = 0; d < D; d += LANES) {
          const f32 query = mixed(q + (first + r) * x_row + d, table + (first + r) * 2 * D + d, D);
          total += query * load(sum + d), store(queries + r * (D + COLUMNS) + d, query);
        }
        weight[r] = 1 / (LEVEL::sum(total) + 1e-15f);
      }
      for (int column = 0; column < D; column += COLUMNS) {  // both parts of the state, of the same queries
        e.tile(queries, D + COLUMNS, 0, 2, D, values + column / COLUMNS * 2 * e.packed(D), c, count);
        for (int r = 0; r < count; r++)
          for (int j = 0; j < COLUMNS; j += LANES)
            store(o + (first + r) * y_row + column + j, load(c + r * COLUMNS + j) * weight[r]);
      }
    }
    for (long row = valid; row < rows; row++) std::memset(o + row * y_row, 0, D * sizeof(bf16));
  });
}

}  // namespace LEVEL
