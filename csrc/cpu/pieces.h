// Convolutions by transforms: pieces of x become factors, products of these with a weight's blocks become results.
#pragma once
#include <algorithm>

#include "engine.h"
#include "parallel.h"

namespace LEVEL {

constexpr long FEW = 48;  // most pieces that a thread takes at a time

// As many rows for each tile of `count` rows, as few tiles as there can be: an engine may take long to change their size.
inline long even_rows(long count, long most) {
  const long tiles = (count + most - 1) / most;
  return tiles ? (count + tiles - 1) / tiles : most;
}

// room(count) is this thread's memory for the factors of `count` pieces; factors(from, i, count, v) writes those of piece
// from + i there, the i-th of `count`; columns(from, count, v, block) makes results of them. A thread takes pieces from x to
// y, as many as the others or two more: whole tiles each would leave a thread waiting, a tenth of the time with 512
// channels (measured). Where the weight, of N rows, is most of what is read, threads share its blocks.
template <typename Room, typename Factors, typename Columns>
void by_pieces(long pieces, long N, int threads, const Room& room, const Factors& factors, const Columns& columns) {
  const long blocks = (N + COLUMNS - 1) / COLUMNS;
  if (threads > 1 && 4 * pieces < N) {
    bf16* v = room(pieces);
    in_parallel(pieces, threads, [&](long i) { factors(0, i, pieces, v); });
    in_parallel(blocks, threads, [&](long block) { columns(0, pieces, v, block); });
    return;
  }
  const long shares = (pieces + FEW * threads - 1) / (FEW * threads) * threads;
  const auto first = [&](long task) { return std::min(task * ((pieces + 1) / 2) / shares * 2, pieces); };
  in_parallel(shares, threads, [&](long task) {
    const long from = first(task), count = first(task + 1) - from;
    bf16* v = room(count);
    for (long i = 0; i < count; i++) factors(from, i, count, v);
    for (long block = 0; block < blocks; block++) columns(from, count, v, block);
  });
}

}  // namespace LEVEL
