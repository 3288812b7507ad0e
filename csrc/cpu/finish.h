// Sums of a convolution become results, 16 columns at a time.
#pragma once
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

}  // namespace LEVEL
