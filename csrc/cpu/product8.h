// A matrix product of 8-bit integers: as product.h's, whose cut of the work it shares, on an engine for them.
#pragma once
#include "product.h"

namespace LEVEL {

// finish(row, rows, column, columns, c) gets the exact sums c[PARTS][rows][32] of `rows` rows of x [R, K] and `columns`
// rows of each of PARTS weights [N, K], which lie `apart` elements from each other; K is a multiple of 64.
template <int PARTS, typename Finish>
void product8(const int8_t* x, long R, long K, const int8_t* w, long apart, long N, int threads, const Finish& finish) {
  const Engine8& e = engine8();
  static thread_local Scratch copy, summed;
  const long stride = K + 64;  // rows of x K apart may fall on few sets of the first cache, see product.h's spread
  int8_t* a = copy.get<int8_t>(R * stride);
  uint32_t* sums = summed.get<uint32_t>(R);  // of rows of x
  in_parallel((R + 31) / 32, threads, [&](long i) {
    for (long r = 32 * i; r < std::min(R, 32 * i + 32); r++) {
      std::memcpy(a + r * stride, x + r * K, K);
      int32_t sum = 0;
      for (long k = 0; k < K; k++) sum += x[r * K + k];
      sums[r] = sum;
    }
  });
  const size_t bytes = e.packed(K);
  const Cut cut(N, R, PARTS * bytes, threads);
  in_parallel(cut.groups * cut.shares, threads, [&](long task) {
    static thread_local Scratch packed;
    const long first = task / cut.shares * cut.group, last = std::min(first + cut.group, cut.blocks);
    const long begin = task % cut.shares * cut.rows, end = std::min(begin + cut.rows, R);
    int8_t* b = packed.get<int8_t>((last - first) * PARTS * bytes);
    for (long i = first; i < last; i++)
      for (int part = 0; part < PARTS; part++)
        e.pack_rows(w + part * apart + i * COLUMNS * K, K, int(std::min<long>(COLUMNS, N - i * COLUMNS)), int(K),
                    b + ((i - first) * PARTS + part) * bytes);
    alignas(64) int32_t c[PARTS * MOST_ROWS * COLUMNS];
    for (long row = begin; row < end; row += e.rows) {
      const int rows = int(std::min<long>(e.rows, end - row));
      for (long i = first; i < last; i++) {
        for (int part = 0; part < PARTS; part++) {
          int32_t* own = c + part * rows * COLUMNS;
          e.tile(a + row * stride, stride, int(K), b + ((i - first) * PARTS + part) * bytes, own, rows);
          for (int r = 0; e.offset && r < rows; r++, own += COLUMNS) {
            const uint32_t more = e.offset * sums[row + r];
            for (int j = 0; j < COLUMNS; j++) own[j] = int32_t(uint32_t(own[j]) - more);
          }
        }
        finish(row, rows, i * COLUMNS, int(std::min<long>(COLUMNS, N - i * COLUMNS)), c);
      }
    }
  });
}

}  // namespace LEVEL
