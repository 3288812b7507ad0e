// A song's rows between zeros, for convolutions that look beyond its ends.
#pragma once
#include <algorithm>
#include <cstring>

#include "engine.h"
#include "parallel.h"

namespace LEVEL {

// Rows `first` to `last` of L, each made by make(row, into) where it is within the song and zeros elsewhere.
template <typename Make>
void rows_or_zeros(long first, long last, long L, long C, bf16* into, long stride, const Make& make) {
  for (long row = first; row < last; row++, into += stride) {
    if (row < 0 || row >= L)
      std::memset(into, 0, C * sizeof(bf16));
    else
      make(row, into);
  }
}

// A copy of x [L, C] and `zeros` rows on either side, `stride` apart.
inline bf16* padded(const bf16* x, long L, long C, long zeros, long stride, Scratch& scratch, int threads) {
  const long rows = L + 2 * zeros, share = 64;
  bf16* copy = scratch.get<bf16>(rows * stride);
  in_parallel((rows + share - 1) / share, threads, [&](long i) {
    rows_or_zeros(i * share - zeros, std::min(i * share + share, rows) - zeros, L, C, copy + i * share * stride, stride,
                  [&](long row, bf16* into) { std::memcpy(into, x + row * C, C * sizeof(bf16)); });
  });
  return copy;
}

}  // namespace LEVEL
