// Depthwise convolution over time and LayerNorm over channels on a CPU.
//
// Math     u[t, c] = tap_bias[c] + sum_k taps[k, c] x[t + k - K / 2, c], zero beyond a song's ends;
//          y[t] = (u[t] - mean) * rsqrt(var + eps) * weight + bias                                  fp32, rounded once
// Tiling   a thread takes 16 rows. It makes u of them 16 channels at a time, whose rows of x, in fp32, lie in the first
//          cache, four rows to a tap that is loaded; u itself lies there or in the second one
// Bytes    2 L C of 16 bits: x in, y out; K - 1 rows more for each 16, from the caches
// Bound    the K fp32 products of each number and the three passes of the norm, or memory
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {
namespace {

constexpr int ROWS = 16, AT_ONCE = 4;

void normalise(float* u, long C, const bf16* weight, const bf16* bias, float eps, bf16* y) {
  f32 total = {}, squares = {};
  for (long c = 0; c < C; c += LANES) total += load(u + c);
  const float mean = sum(total) / C;
  for (long c = 0; c < C; c += LANES) {
    const f32 v = load(u + c) - mean;
    squares += v * v;
  }
  const float norm = 1 / std::sqrt(sum(squares) / C + eps);
  for (long c = 0; c < C; c += LANES) store(y + c, (load(u + c) - mean) * norm * load(weight + c) + load(bias + c));
}

}  // namespace

// C is a multiple of 16, K odd; taps are [K, C].
void depthwise_norm(const bf16* x, long x_song, long x_row, long batch, long rows, long C, int K, const bf16* taps,
                    const bf16* tap_bias, const bf16* weight, const bf16* bias, float eps, bf16* y, long y_song,
                    long y_row, int threads) {
  const long blocks = (rows + ROWS - 1) / ROWS;
  in_parallel(batch * blocks, threads, [=](long task) {
    static thread_local Scratch scratch;
    const long song = task / blocks, first = task % blocks * ROWS, count = std::min<long>(ROWS, rows - first);
    const bf16* from = x + song * x_song + (first - K / 2) * x_row;
    float* u = scratch.get<float>(ROWS * C + (ROWS + 2 * K - 1) * LANES);  // [ROWS, C]
    float *near = u + ROWS * C, *tap = near + (ROWS + K - 1) * LANES;      // of 16 channels: rows of x, taps
    for (long c = 0; c < C; c += LANES) {
      for (int k = 0; k < K; k++) store(tap + k * LANES, load(taps + k * C + c));
      for (long i = 0; i < ROWS + K - 1; i++) {
        const long row = first - K / 2 + i;
        store(near + i * LANES, row < 0 || row >= rows ? f32{} : load(from + i * x_row + c));
      }
      const f32 start = load(tap_bias + c);
      for (long i = 0; i < count; i += AT_ONCE) {  // beyond the count, of zeros
        f32 sums[AT_ONCE] = {start, start, start, start};
        for (int k = 0; k < K; k++)
          for (int r = 0; r < AT_ONCE; r++) sums[r] += load(near + (i + r + k) * LANES) * load(tap + k * LANES);
        for (int r = 0; r < AT_ONCE; r++) store(u + (i + r) * C + c, sums[r]);
      }
    }
    for (long i = 0; i < count; i++)
      normalise(u + i * C, C, weight, bias, eps, y + song * y_song + (first + i) * y_row);
  });
}

}  // namespace LEVEL
