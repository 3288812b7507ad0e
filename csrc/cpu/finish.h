// Sums of a convolution become results, 16 columns at a time.
#pragma once
#include <algorithm>

#include "results.h"
#include "vector.h"

namespace LEVEL {

// n columns of `rows` rows c[r][32], the first of which is column `column`; its result lies at y[at + r * step].
inline void finish(const Results& to, const float* c, int rows, long column, int n, long at, long step) {
  const f32 bias = to.bias ? load(to.bias + column, n) : f32{};
  const f32 alpha = to.alpha ? load(to.alpha + column, n) : f32{};
  const f32 inv_beta = to.alpha ? load(to.inv_beta + column, n) : f32{};
  for (int r = 0; r < rows; r++, c += COLUMNS, at += step) {
    f32 v = load(c) + bias;
    if (to.residual) v += load(to.residual + at, n);
    v *= to.share;
    if (to.total) v += load(to.total + at, n);
    if (to.y) store(to.y + at, v, n);
    if (to.waved) store(to.waved + at, to.alpha ? snake(v, alpha, inv_beta) : silu(v), n);
  }
}

// Where a row's width is a divisor of 32: what is of each column, repeated over 32 of them.
struct Repeated : Results {
  alignas(64) bf16 biases[COLUMNS];
  alignas(64) float alphas[COLUMNS], inv_betas[COLUMNS];

  explicit Repeated(const Results& to) : Results(to) {
    repeat(bias, biases), repeat(alpha, alphas), repeat(inv_beta, inv_betas);
  }

  template <typename T>
  void repeat(const T*& of, T* all) {
    for (long j = 0; of && j < COLUMNS; j++) all[j] = of[j % width];
    if (of) of = all;
  }
};

// `count` consecutive numbers c, the first of which is a row's first; their results lie at y[at].
inline void finish_rows(const Repeated& to, const float* c, long count, long at) {
  const long whole = count / COLUMNS, rest = count % COLUMNS;
  for (int j = 0; j < COLUMNS; j += LANES) {
    finish(to, c + j, int(whole), j, LANES, at + j, COLUMNS);
    if (rest > j)
      finish(to, c + whole * COLUMNS + j, 1, j, int(std::min<long>(rest - j, LANES)), at + whole * COLUMNS + j, 0);
  }
}

}  // namespace LEVEL
