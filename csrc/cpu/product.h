// A matrix product on an engine: rows times the rows of a weight, tile by tile, each handed to whoever finishes it.
#pragma once
#include <algorithm>
#include <cstring>

#include "engine.h"
#include "machine.h"
#include "parallel.h"

namespace LEVEL {

// All of it is in a level's namespace, inline functions too: a linker keeps one of those that have one name, which must
// not be one for another CPU.
struct Rows {
  const bf16* at;
  long count, K, stride;
};

// A thread takes `group` neighbouring blocks of 32 columns, which packed fill half of its second cache, and all rows, or
// a share of them where there are more threads than groups.
struct Cut {
  long blocks, group, groups, rows, shares;

  Cut(long N, long M, long bytes_of_a_block, int threads) {
    blocks = (N + COLUMNS - 1) / COLUMNS;
    group = std::max(1L, std::min(inner_cache() / 2 / bytes_of_a_block, blocks / (2L * threads)));
    groups = (blocks + group - 1) / group;
    shares = std::min((M + 63) / 64, std::max(1L, (2L * threads + groups - 1) / groups));
    rows = (M + shares - 1) / shares;
  }
};

// Rows at a distance that is a multiple of 2 KB fall on few sets of the first cache and push each other out: a copy of
// them lies a cache line further apart.
inline Rows spread(Rows a, Scratch& scratch, int threads) {
  if (a.stride * sizeof(bf16) % 2048) return a;
  const long stride = a.K + COLUMNS;
  bf16* copy = scratch.get<bf16>(a.count * stride);
  in_parallel((a.count + 31) / 32, threads, [&](long i) {
    for (long r = 32 * i; r < std::min(a.count, 32 * i + 32); r++)
      std::memcpy(copy + r * stride, a.at + r * a.stride, a.K * sizeof(bf16));
  });
  return {copy, a.count, a.K, stride};
}

// finish(row, rows, column, columns, c) gets c[PARTS][rows][32], the products of `rows` rows with `columns` rows of each
// of PARTS weights [N, K], whose rows lie `stride` apart, or which are panels where that is 0.
template <int PARTS, typename Finish>
void product(Rows a, const bf16* const (&w)[PARTS], long stride, long N, int threads, const Finish& finish) {
  static thread_local Scratch copy;
  a = spread(a, copy, threads);
  const Engine& e = engine();
  const size_t bytes = e.packed(a.K);
  const Cut cut(N, a.count, PARTS * bytes, threads);
  const bool panels = stride == 0, in_place = panels && !e.pack_panel;
  in_parallel(cut.groups * cut.shares, threads, [&](long task) {
    static thread_local Scratch packed;
    const long first = task / cut.shares * cut.group, last = std::min(first + cut.group, cut.blocks);
    const long begin = task % cut.shares * cut.rows, end = std::min(begin + cut.rows, a.count);
    const char* b[PARTS];
    for (int part = 0; part < PARTS; part++) {
      b[part] = reinterpret_cast<const char*>(w[part] + first * COLUMNS * a.K);
      if (in_place) continue;
      char* own = packed.get<char>((last - first) * PARTS * bytes) + part * (last - first) * bytes;
      b[part] = own;
      for (long i = first; i < last; i++, own += bytes)
        if (panels)
          e.pack_panel(w[part] + i * COLUMNS * a.K, int(a.K), own);
        else
          e.pack_rows(w[part] + i * COLUMNS * stride, stride, int(std::min<long>(COLUMNS, N - i * COLUMNS)), int(a.K),
                      own);
    }
    alignas(64) float c[PARTS * MOST_ROWS * COLUMNS];
    for (long row = begin; row < end; row += e.rows) {
      const int rows = int(std::min<long>(e.rows, end - row));
      for (long i = first; i < last; i++) {
        for (int part = 0; part < PARTS; part++)
          e.tile(a.at + row * a.stride, a.stride, 0, 1, int(a.K), b[part] + (i - first) * bytes,
                 c + part * rows * COLUMNS, rows);
        finish(row, rows, i * COLUMNS, int(std::min<long>(COLUMNS, N - i * COLUMNS)), c);
      }
    }
  });
}

}  // namespace LEVEL
