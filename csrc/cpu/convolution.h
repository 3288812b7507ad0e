// Convolutions of rows on an engine: tile by tile of rows that lie between zeros, each handed to whoever finishes it.
#pragma once
#include <algorithm>
#include <cstring>

#include "engine.h"
#include "machine.h"
#include "parallel.h"

namespace LEVEL {

// result row r is made of rows  r * stride + t * dilation - padding  of x [L, C], t from 0 to taps - 1; zeros are beyond
// its ends.
struct Convolution {
  const bf16* x;
  long L, C, rows;  // rows of the result
  long taps, stride, padding, dilation;
};

// Rows `first` to `last` of L, `apart` numbers from each other, each made by make(row, into) where the song has it and
// zeros elsewhere.
template <typename Make>
void rows_or_zeros(long first, long last, long L, long C, bf16* into, long apart, const Make& make) {
  for (long row = first; row < last; row++, into += apart) {
    if (row < 0 || row >= L)
      std::memset(into, 0, C * sizeof(bf16));
    else
      make(row, into);
  }
}

// A thread takes blocks of 32 columns that, packed, fill half of its second cache, and a share of the rows; of these it
// copies a few at a time, to a quarter of that cache. Where there are few rows, threads share the columns.
// pack(first, count, b) packs columns; finish(row, rows, column, columns, c) gets the sums c[rows][32].
template <typename Pack, typename Finish>
void convolve(const Convolution& a, long N, int threads, const Pack& pack, const Finish& finish) {
  constexpr long FEWEST = 256;  // rows that are worth packing for
  constexpr long FAR = 4;       // blocks where one alone is larger: they come from the last cache, and share the rows' copy
  const Engine& e = engine();
  const size_t bytes = e.packed(a.taps * a.C);
  const long blocks = (N + COLUMNS - 1) / COLUMNS, tasks = 2L * threads, apart = a.C + COLUMNS;
  long shares = std::max(1L, std::min(a.rows / FEWEST, tasks));
  const long near = inner_cache() / 2 / long(bytes);
  const long group = std::max(1L, std::min(near ? near : FAR, blocks * shares / tasks));
  const long groups = (blocks + group - 1) / group;
  shares = std::min(shares, (tasks + groups - 1) / groups);
  const long share = (a.rows + shares - 1) / shares, reach = (a.taps - 1) * a.dilation;
  const long fitting = (inner_cache() / 4 / (apart * long(sizeof(bf16))) - reach) / a.stride;
  const long most = std::max<long>(e.rows, fitting / e.rows * e.rows);
  in_parallel(groups * shares, threads, [&](long task) {
    static thread_local Scratch packed, window;
    const long first = task / shares * group, last = std::min(first + group, blocks);
    const long end = std::min(task % shares * share + share, a.rows);
    char* b = packed.get<char>((last - first) * bytes);
    bf16* copy = window.get<bf16>(((most - 1) * a.stride + reach + 1) * apart);
    for (long i = first; i < last; i++)
      pack(i * COLUMNS, int(std::min<long>(COLUMNS, N - i * COLUMNS)), b + (i - first) * bytes);
    alignas(64) float c[MOST_ROWS * COLUMNS];
    for (long from = task % shares * share; from < end; from += most) {
      const long to = std::min(from + most, end), begin = from * a.stride - a.padding;
      rows_or_zeros(begin, (to - 1) * a.stride - a.padding + reach + 1, a.L, a.C, copy, apart,
                    [&](long row, bf16* into) { std::memcpy(into, a.x + row * a.C, a.C * sizeof(bf16)); });
      for (long row = from; row < to; row += e.rows) {
        const int rows = int(std::min<long>(e.rows, to - row));
        for (long i = first; i < last; i++) {
          e.tile(copy + (row - from) * a.stride * apart, a.stride * apart, a.dilation * apart, int(a.taps), int(a.C),
                 b + (i - first) * bytes, c, rows);
          finish(row, rows, i * COLUMNS, int(std::min<long>(COLUMNS, N - i * COLUMNS)), c);
        }
      }
    }
  });
}

}  // namespace LEVEL
