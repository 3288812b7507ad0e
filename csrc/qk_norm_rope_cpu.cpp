// RMSNorm of query and key heads, then their rotation, on a CPU.
//
// Math     u = x rsqrt(mean(x^2) + eps) weight;  y = cat(u1 cos - u2 sin, u2 cos + u1 sin)       fp32, rounded once
// Tiling   a head at a time, in registers, so that it may be written where it was; a thread takes 8 rows
// Bytes    queries and keys once in and once out; cos and sin once, they stay in the first cache for a row's heads
// Bound    memory, or the last cache
#include "cpu/head_norm.h"
#include "cpu/parallel.h"

namespace LEVEL {
namespace {

constexpr long ROWS = 8;

template <int D>
void rotate(const bf16* x, const bf16* weight, const float* cos, const float* sin, float eps, bf16* y) {
  constexpr int N = D / LANES;
  const float inverse = inverse_rms(x, D, eps);
  f32 u[N];
  for (int i = 0; i < N; i++) u[i] = load(x + i * LANES) * inverse * load(weight + i * LANES);
  for (int i = 0; i < N / 2; i++) {
    const f32 a = u[i], b = u[i + N / 2];
    if (!cos) {
      store(y + i * LANES, a);
      store(y + (i + N / 2) * LANES, b);
      continue;
    }
    const f32 c = load(cos + i * LANES), s = load(sin + i * LANES);
    store(y + i * LANES, a * c - b * s);
    store(y + (i + N / 2) * LANES, b * c + a * s);
  }
}

}  // namespace

// Rows of all items of the batch, at one distance; row r is at position r % positions.
void qk_norm_rope(const bf16* x, long x_stride, const bf16* q_weight, const bf16* k_weight, const float* cos,
                  const float* sin, long cos_stride, long sin_stride, bf16* y, long y_stride, long rows, long positions,
                  int heads, int kv_heads, int D, float eps, int threads) {
  const auto one = D == 32 ? rotate<32> : D == 64 ? rotate<64> : D == 96 ? rotate<96> : rotate<128>;
  in_parallel((rows + ROWS - 1) / ROWS, threads, [=](long task) {
    for (long r = task * ROWS; r < rows && r < task * ROWS + ROWS; r++) {
      const long p = r % positions;
      for (int h = 0; h < heads + kv_heads; h++)
        one(x + r * x_stride + h * D, h < heads ? q_weight : k_weight, cos ? cos + p * cos_stride : nullptr,
            sin + p * sin_stride, eps, y + r * y_stride + h * D);
    }
  });
}

}  // namespace LEVEL
