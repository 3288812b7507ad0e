// Sums of a convolution become results, up to 32 columns at a time.
#pragma once
#include <algorithm>
#include <type_traits>

#include "results.h"
#include "vector.h"

namespace LEVEL {

// n columns of `rows` rows c[r][32], the first of which is column `column`; its result lies at y[at + r * step]. All of a
// row's columns come before those of the next: 32 are a line of memory, which is soon gone from the first cache where rows
// lie a power of two apart.
inline void finish(const Results& to, const float* c, int rows, long column, int n, long at, long step) {
  f32 bias[2] = {}, alpha[2] = {}, inv_beta[2] = {};
  for (int j = 0; j < n; j += LANES) {
    const int part = std::min(n - j, LANES);
    if (to.bias) bias[j / LANES] = load(to.bias + column + j, part);
    if (!to.alpha) continue;
    alpha[j / LANES] = load(to.alpha + column + j, part), inv_beta[j / LANES] = load(to.inv_beta + column + j, part);
  }
  const bf16 *const residual = to.residual, *const total = to.total;  // in `to`, for all gcc knows, a store may change them
  bf16 *const y = to.y, *const waved = to.waved;
  const float share = to.share;
  const bool snaked = to.alpha;
  const auto all_rows = [&](auto n) {
    for (int r = 0; r < rows; r++, c += COLUMNS, at += step)
      for (int j = 0; j < n; j += LANES) {
        const int part = std::min<int>(n - j, LANES);
        f32 v = load(c + j) + bias[j / LANES];
        if (residual) v += load(residual + at + j, part);
        v *= share;
        if (total) v += load(total + at + j, part);
        if (y) store(y + at + j, v, part);
        if (waved) store(waved + at + j, snaked ? snake(v, alpha[j / LANES], inv_beta[j / LANES]) : silu(v), part);
      }
  };
  if (n == COLUMNS) return all_rows(std::integral_constant<int, COLUMNS>());
  if (n == LANES) return all_rows(std::integral_constant<int, LANES>());
  all_rows(n);
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
  finish(to, c, int(whole), 0, COLUMNS, at, COLUMNS);
  if (rest) finish(to, c + whole * COLUMNS, 1, 0, int(rest), at + whole * COLUMNS, 0);
}

}  // namespace LEVEL
