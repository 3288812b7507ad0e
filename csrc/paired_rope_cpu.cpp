// ACE-Step v1's position embedding on a CPU.
//
// Math     y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i],  y[2i+1] = x[2i+1] cos[2i+1] + x[2i] sin[2i+1]      fp32, rounded once
// Tiling   16 channels at a time, in registers, so that they may be written where they were; a thread takes 8 rows
// Bytes    x once in and y once out; cosines and sines once, they stay in the first cache for a row's heads
// Bound    memory, or the last cache
#include <algorithm>

#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace LEVEL {

// Strides of the batch, rows and heads; table [rows, 2, D].
void paired_rope(const bf16* x, const long* x_strides, const float* table, bf16* y, const long* y_strides, long batch,
                 long rows, int heads, int D, int threads) {
  constexpr long ROWS = 8;
  in_parallel((batch * rows + ROWS - 1) / ROWS, threads, [=](long task) {
    for (long i = task * ROWS; i < std::min(batch * rows, task * ROWS + ROWS); i++) {
      const long b = i / rows, row = i % rows;
      const float* cos = table + row * 2 * D;
      for (int h = 0; h < heads; h++) {
        const bf16* from = x + b * x_strides[0] + row * x_strides[1] + h * x_strides[2];
        bf16* to = y + b * y_strides[0] + row * y_strides[1] + h * y_strides[2];
        for (int d = 0; d < D; d += LANES) store(to + d, mix_pairs(load(from + d), cos + d, cos + D + d));
      }
    }
  });
}

}  // namespace LEVEL
