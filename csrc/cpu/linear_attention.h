// Linear attention of one head on an engine: what its keys and values add up to, then what each query takes of that.
#pragma once
#include <algorithm>

#include "engine.h"
#include "parallel.h"
#include "vector.h"

namespace LEVEL {

constexpr int WIDEST = 128;  // head, a multiple of 32

// o[i] = q[i] . state / (q[i] . sum + 1e-15),  state = sum_j k[j]^T v[j],  sum = sum_j k[j], of D channels and `valid` rows,
// `x_row` numbers from each other. weights(x, row, d) gives 16 numbers of a row of q or k from x + d on, none of them
// negative and all of them bf16 numbers. The state is the sum of two of those.
template <typename Weights>
void attend_linearly(const bf16* q, const bf16* k, const bf16* v, long x_row, long valid, int D, bf16* o, long y_row,
                     const Weights& weights) {
  const Engine& e = engine();
  static thread_local Scratch turned, packed;
  const long K = std::max<long>((valid + K_STEP - 1) / K_STEP * K_STEP, K_STEP), apart = K + COLUMNS;
  bf16* keys = turned.get<bf16>(D * apart);
  char* values = packed.get<char>(std::max(e.packed(K), D / COLUMNS * 2 * e.packed(D)));
  alignas(64) float sum[WIDEST] = {}, c[MOST_ROWS * COLUMNS];
  alignas(64) bf16 state[2][WIDEST * WIDEST];  // its two parts
  for (int d = 0; d < D; d += LANES) {
    f32 total = {};
    for (long row = 0; row < K; row++) {
      bf16 one[LANES] = {};
      if (row < valid) {
        const f32 key = weights(k + row * x_row, row, d);
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
        const f32 query = weights(q + (first + r) * x_row, first + r, d);
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
}

}  // namespace LEVEL
