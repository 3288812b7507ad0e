// The middle of ACE-Step v1's feed-forward block on a CPU: a depthwise convolution over three frames, then a gate.
//
// Math     y[s, c] = bias[c] + sum_k weight[c, k] u[s + k - 1, c] of u = x or silu(x);  out = y[s, c] silu(y[s, c + F])
//          fp32, rounded once
// Tiling   a thread takes 64 rows, 512 pairs of channels (c, c + F) at a time: three rows of u lie in its first cache,
//          so that each is activated once, two more for each 64
// Bytes    3 B S F of 16 bits: x in, out out; weights come from the second cache
// Bound    two activations of x and one of the gate for each number that comes out
#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {
namespace {

constexpr long ROWS = 64, CHANNELS = 512;

void activate(const bf16* x, long channels, bool with_silu, float* u) {
  for (long c = 0; c < channels; c += LANES) {
    const f32 v = load(x + c);
    store(u + c, with_silu ? silu(v) : v);
  }
}

}  // namespace

// weight is [3, 2 F], a tap's channels side by side.
void depthwise_glu(const bf16* x, long x_batch, long x_row, const bf16* weight, long tap, const bf16* bias,
                   const int64_t* lengths, bf16* out, long out_batch, long out_row, long batch, long rows, long F,
                   bool silu_input, int threads) {
  const long blocks = (rows + ROWS - 1) / ROWS;
  in_parallel(batch * blocks, threads, [=](long task) {
    const long b = task / blocks, begin = task % blocks * ROWS, end = std::min(begin + ROWS, rows);
    const long length = lengths ? std::clamp<long>(lengths[b], 0, rows) : rows, last = std::clamp(length, begin, end);
    for (long s = last; s < end; s++) std::fill_n(out + b * out_batch + s * out_row, F, bf16{});
    for (long c = 0; begin < last && c < F; c += CHANNELS) {
      alignas(64) float u[3][2][CHANNELS];  // of rows s - 1, s and s + 1, by s % 3; values and gates
      const long channels = std::min(CHANNELS, F - c);
      const auto take = [&](long s) {
        for (int half = 0; half < 2; half++) {
          float* to = u[(s + 3) % 3][half];
          if (s < 0 || s >= length) {
            std::fill_n(to, channels, 0.0f);
          } else {
            activate(x + b * x_batch + s * x_row + half * F + c, channels, silu_input, to);
          }
        }
      };
      take(begin - 1);
      take(begin);
      for (long s = begin; s < last; s++) {
        take(s + 1);
        bf16* to = out + b * out_batch + s * out_row + c;
        for (long i = 0; i < channels; i += LANES) {
          f32 y[2];
          for (int half = 0; half < 2; half++) {
            const long at = half * F + c + i;
            y[half] = load(bias + at);
            for (int k = 0; k < 3; k++) y[half] += load(weight + k * tap + at) * load(u[(s + k + 2) % 3][half] + i);
          }
          store(to + i, y[0] * silu(y[1]));
        }
      }
    }
  });
}

}  // namespace LEVEL
