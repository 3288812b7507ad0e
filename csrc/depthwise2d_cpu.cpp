// Depthwise convolution of channels-last images on a CPU, with a SiLU before it and a gate behind.
//
// Math     y[h, w, c] = bias[c] + sum_ij weight[i, j, c] u[h + i - K / 2, w + j - K / 2, c],  u = x or silu(x), zero beyond
//          the edges;  y = a silu(g) of the halves (a, g) of channels where there is a gate           fp32, rounded once
// Tiling   a thread takes 32 channels of an image and goes down its rows: u of the K last ones lies in the first cache
// Bytes    x once and y once, a cache line at each place
// Bound    the K K fp32 products of each number, or memory
#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {
namespace {

constexpr int WIDE = 32;  // channels at a time: a cache line of bf16

// The K last rows of u, of WIDE channels from x on, and what they make.
struct Column {
  const bf16* x;
  long H, W, C;
  int K;
  bool silu_input;
  float *taps, *rows;  // [K, K, WIDE] and [K, W + K - 1, WIDE]
  f32 bias[WIDE / LANES];

  long width() const { return (W + K - 1) * WIDE; }

  void read(long row) const {
    float* to = rows + row % K * width();
    std::memset(to, 0, width() * sizeof(float));
    if (row >= H) return;
    to += K / 2 * WIDE;
    for (long w = 0; w < W; w++)
      for (int c = 0; c < WIDE; c += LANES) {
        const f32 v = load(x + (row * W + w) * C + c);
        store(to + w * WIDE + c, silu_input ? silu(v) : v);
      }
  }

  f32 at(long row, long w, int c) const {
    f32 sum = bias[c / LANES];
    for (int i = 0; i < K; i++) {
      if (row + i < K / 2) continue;  // above the image
      const float *from = rows + (row + i - K / 2) % K * width() + w * WIDE + c, *tap = taps + i * K * WIDE + c;
      for (int j = 0; j < K; j++) sum += load(from + j * WIDE) * load(tap + j * WIDE);
    }
    return sum;
  }
};

}  // namespace

// x [batch, H, W, C], weight [K, K, C], y [batch, H, W, C] or of a gate [batch, H, W, C / 2], a multiple of 32 channels.
void depthwise2d(const bf16* x, long batch, long H, long W, long C, int K, const bf16* weight, const bf16* bias,
                 bool silu_input, bool gate, bf16* y, int threads) {
  const long channels = gate ? C / 2 : C, blocks = channels / WIDE;
  in_parallel(batch * blocks, threads, [=](long task) {
    static thread_local Scratch scratch;
    const long b = task / blocks, first = task % blocks * WIDE;
    const long taps = K * K * WIDE, size = taps + K * (W + K - 1) * WIDE;
    float* memory = scratch.get<float>(2 * size);
    Column column[2];
    for (int side = 0; side <= gate; side++, memory += size) {
      const long c0 = first + side * channels;
      column[side] = {x + b * H * W * C + c0, H, W, C, K, silu_input, memory, memory + taps, {}};
      for (int c = 0; c < WIDE; c += LANES) {
        for (int i = 0; i < K * K; i++) store(memory + i * WIDE + c, load(weight + i * C + c0 + c));
        if (bias) column[side].bias[c / LANES] = load(bias + c0 + c);
      }
      for (long row = 0; row < K / 2; row++) column[side].read(row);
    }
    for (long h = 0; h < H; h++) {
      for (int side = 0; side <= gate; side++) column[side].read(h + K / 2);
      for (long w = 0; w < W; w++)
        for (int c = 0; c < WIDE; c += LANES) {
          f32 v = column[0].at(h, w, c);
          if (gate) v *= silu(column[1].at(h, w, c));
          store(y + ((b * H + h) * W + w) * channels + first + c, v);
        }
    }
  });
}

}  // namespace LEVEL
