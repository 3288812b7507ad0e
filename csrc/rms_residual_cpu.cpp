// RMSNorm of a branch, added to what it branched off, on a CPU.
//
// Math     y[t] = x[t] + h[t] * rsqrt(mean(h[t]**2) + eps) * weight + bias, and its ReLU where that is asked for,
//          in fp32, rounded once
// Tiling   a thread takes a few rows; a row of h is read again from the first cache once its squares are added up
// Bytes    h, x and y once each; weight and bias stay in the caches
// Bound    memory
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {

constexpr long NUMBERS = 16384;  // that a thread takes at a time

// x may be null; y may be h or x.
void rms_residual(long rows, long C, const bf16* h, long h_row, const bf16* weight, const bf16* bias, const bf16* x,
                  long x_row, bool relu, float eps, bf16* y, long y_row, int threads) {
  const long step = std::max(1L, NUMBERS / C);
  in_parallel((rows + step - 1) / step, threads, [=](long task) {
    for (long i = task * step; i < std::min(rows, (task + 1) * step); i++) {
      const bf16* from = h + i * h_row;
      f32 squares = {};
      for (long j = 0; j < C; j += LANES) squares += load(from + j) * load(from + j);
      const float norm = 1 / std::sqrt(sum(squares) / C + eps);
      for (long j = 0; j < C; j += LANES) {
        f32 v = load(from + j) * norm * load(weight + j) + load(bias + j);
        if (x) v += load(x + i * x_row + j);
        if (relu) v = choose(v < 0, f32{}, v);  // a NaN stays one
        store(y + i * y_row + j, v);
      }
    }
  });
}

}  // namespace LEVEL
