// Convolutions of rows on an engine: tile by tile of rows that lie between zeros, each handed to whoever finishes it.
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>

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

// n rows of `width` numbers, of which there are so few that a call of memcpy for each would take longer.
template <typename T>
void copy_rows(const T* from, long from_apart, long n, long width, T* to, long to_apart) {
  const auto copy = [=](auto width) {
    for (long i = 0; i < n; i++) std::memcpy(to + i * to_apart, from + i * from_apart, width * sizeof(T));
  };
  if (width == 8) return copy(std::integral_constant<long, 8>());
  if (width == 16) return copy(std::integral_constant<long, 16>());
  copy(width);
}

// A convolution of stride 1 to N results a row, a divisor of 32: 32 / N neighbouring rows of the result are the columns
// of a tile, whose filters lie one row of x behind each other between zeros. A tile's row is then a window of consecutive
// numbers, whatever C is. With a dilation, rows that lie that far apart are copied to be a song of their own.
// What is not finite in x reaches results beside those it belongs to, as it is multiplied by those zeros.
// filter(o, into) writes the taps * C numbers of filter o; finish(row, rows, c) gets the sums c[rows][N].
template <typename Filter, typename Finish>
void convolve_narrow(const Convolution& of, long N, int threads, const Filter& filter, const Finish& finish) {
  constexpr long BLOCK = 32 << 10;  // bytes of rows and sums that a thread works on at a time
  const Engine& e = engine();
  const long group = COLUMNS / N, window = (of.taps + group - 1) * of.C;
  const long K = (window + K_STEP - 1) / K_STEP * K_STEP, depth = (window + e.step - 1) / e.step * e.step;
  static thread_local Scratch filters, packed;
  bf16* w = filters.get<bf16>(COLUMNS * K);
  char* b = packed.get<char>(e.packed(K));
  std::memset(w, 0, COLUMNS * K * sizeof(bf16));
  for (long j = 0; j < COLUMNS; j++) filter(j % N, w + j * K + j / N * of.C);
  e.pack_rows(w, K, COLUMNS, int(K), b);
  const long whole = group * e.rows, fitting = BLOCK / ((of.C + 2 * N) * of.dilation * long(sizeof(bf16)));
  const long share = std::max(whole, fitting / whole * whole), block = share * of.dilation;  // rows of a song, of all
  in_parallel((of.rows + block - 1) / block, threads, [&](long task) {
    static thread_local Scratch copies, results;
    const Convolution a = of;
    const long from = task * block, rows = std::min(block, a.rows - from), begin = from - a.padding;
    const long length = share + a.taps - 1, size = length * a.C + K_STEP;  // rows and numbers of a song's copy
    bf16* copy = copies.get<bf16>(size * a.dilation);
    float* sums = results.get<float>(block * N);
    alignas(64) float c[MOST_ROWS * COLUMNS];
    const bool in_place = a.dilation == 1 && begin >= 0 && (begin + length) * a.C + K_STEP <= a.L * a.C;
    for (long line = 0; line < block * a.C && !in_place; line += COLUMNS)  // of the next block
      __builtin_prefetch(a.x + (begin + block) * a.C + line);
    for (long song = 0; song < std::min(a.dilation, rows) && !in_place; song++) {
      const long row = begin + song, d = a.dilation;  // its first of x; zeros are beyond the ends
      const long lo = row < 0 ? std::min((-row + d - 1) / d, length) : 0;
      const long hi = std::clamp((a.L - row + d - 1) / d, lo, length);
      bf16* to = copy + song * size;
      std::memset(to, 0, lo * a.C * sizeof(bf16));
      copy_rows(a.x + (row + lo * d) * a.C, d * a.C, hi - lo, a.C, to + lo * a.C, a.C);
      std::memset(to + hi * a.C, 0, (size - hi * a.C) * sizeof(bf16));
    }
    for (long song = 0; song < std::min(a.dilation, rows); song++, copy += size) {
      const bf16* at = in_place ? a.x + begin * a.C : copy;
      const long count = (rows - song + a.dilation - 1) / a.dilation;  // of its results
      for (long i = 0; i < count; i += whole) {
        const long end = std::min(i + whole, count);
        const int tile = int((end - i + group - 1) / group);
        float* to = a.dilation == 1 ? sums + i * N : c;
        e.tile(at + i * a.C, group * a.C, 0, 1, int(depth), b, to, tile);
        if (a.dilation > 1) copy_rows(c, N, end - i, N, sums + (song + i * a.dilation) * N, a.dilation * N);
      }
    }
    finish(from, rows, sums);
  });
}

}  // namespace LEVEL
