// Residual add, RMSNorm and modulation on a CPU.
//
// Math     x'[t] = x[t] + gate * y[t], rounded
//          h[t] = x'[t] * rsqrt(mean(x'[t]**2) + eps) * weight * (1 + scale) + shift, in fp32, rounded once
// Tiling   a thread takes a few rows; a row of x' waits in fp32 in the first cache while its squares are added up
// Bytes    x, y, x' and h once each; the vectors stay in the caches
// Bound    memory
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {

constexpr long ROWS = 8;  // that a thread takes at a time

// Each tensor [B, S, H] comes with the distances between songs and between rows, which may be 0. y, gate, weight,
// scale, shift and where x' goes may be null.
void residual_norm(long B, long S, long H, const bf16* x, long x_song, long x_row, const bf16* y, long y_song,
                   long y_row, const float* gate, const bf16* weight, const float* scale, const float* shift, float eps,
                   bf16* sum_to, long sum_song, long sum_row, bf16* h, long h_song, long h_row, int threads) {
  in_parallel((B * S + ROWS - 1) / ROWS, threads, [&](long task) {
    static thread_local Scratch scratch;
    float* kept = scratch.get<float>(H);
    for (long i = task * ROWS; i < std::min(B * S, (task + 1) * ROWS); i++) {
      const long song = i / S, row = i % S;
      const bf16* from = x + song * x_song + row * x_row;
      const bf16* more = y ? y + song * y_song + row * y_row : nullptr;
      bf16* to = sum_to ? sum_to + song * sum_song + row * sum_row : nullptr;
      f32 squares = {};
      for (long j = 0; j < H; j += LANES) {
        f32 v = load(from + j);
        if (more) v = round_to_bf16(gate ? v + load(gate + j) * load(more + j) : v + load(more + j));
        if (to) store(to + j, v);
        store(kept + j, v);
        squares += v * v;
      }
      const float norm = 1 / std::sqrt(sum(squares) / H + eps);
      bf16* out = h + song * h_song + row * h_row;
      for (long j = 0; j < H; j += LANES) {
        f32 v = load(kept + j) * norm;
        f32 factor = weight ? load(weight + j) : all(1);
        if (scale) factor *= 1 + load(scale + j);
        v *= factor;
        if (shift) v += load(shift + j);
        store(out + j, v);
      }
    }
  });
}

}  // namespace LEVEL
