// Depthwise convolution of channels-last images on a CPU, with a SiLU before it, and a gate or a mix of channels behind.
//
// Math     d[h, w, c] = bias[c] + sum_ij weight[i, j, c] u[h + i - K / 2, w + j - K / 2, c],  u = x or silu(x), zero beyond
//          the edges;  y = d, or a silu(g) of the halves (a, g) of d's channels, or of each 32 channels their product with
//          a matrix                                                    fp32, rounded once; d is also before a mix
// Tiling   a thread takes 32 channels of an image and goes down its rows: u of the K last ones lies in the first cache,
//          their taps in registers
// Bytes    x once and y once, a cache line at each place
// Bound    the K K fp32 products of each number and its SiLU, or memory
#include <algorithm>
#include <optional>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {
namespace {

constexpr int WIDE = 32;  // channels at a time: a cache line of bf16

struct Image {
  const bf16* x;
  long H, W, C;
  bool silu_input;
};

// WIDE channels from `first` on of one image: taps [K, K, WIDE], and rows [K, W + K - 1, WIDE], the last ones of u.
template <int K>
class Column {
 public:
  Column(const Image& of, long first, const bf16* weight, const bf16* bias, float* memory)
      : of_(of), first_(first), taps_(memory), rows_(memory + K * K * WIDE) {
    for (int c = 0; c < WIDE; c += LANES) {
      for (int i = 0; i < K * K; i++) store(taps_ + i * WIDE + c, load(weight + i * of.C + first + c));
      bias_[c / LANES] = bias ? load(bias + first + c) : f32{};
    }
    for (long row = -(K / 2); row < K / 2; row++) read(row);
  }

  static long size(long W) { return (K * K + K * (W + K - 1)) * WIDE; }

  void read(long row) {
    float* to = place(row);
    std::memset(to, 0, width() * sizeof(float));
    if (row < 0 || row >= of_.H) return;
    to += K / 2 * WIDE;
    const bf16* from = of_.x + row * of_.W * of_.C + first_;
    for (long w = 0; w < of_.W; w++, from += of_.C, to += WIDE) {
      __builtin_prefetch(from + of_.W * of_.C);  // of the next row: these lines lie too far apart to be foreseen
      for (int c = 0; c < WIDE; c += LANES) {
        const f32 v = load(from + c);
        store(to + c, of_.silu_input ? silu(v) : v);
      }
    }
  }

  // each(w, d[h, w]) for 16 channels from c on, when row h + K / 2 has been read.
  template <typename Each>
  void sums(long h, int c, const Each& each) const {
    f32 taps[K * K];
    const float* rows[K];
#pragma GCC unroll 25
    for (int i = 0; i < K * K; i++) taps[i] = load(taps_ + i * WIDE + c);
    for (int i = 0; i < K; i++) rows[i] = place(h + i - K / 2) + c;
    for (long w = 0; w < of_.W; w++) {
      f32 sum[2] = {bias_[c / LANES], {}};  // two, as each step waits for the one before
#pragma GCC unroll 25
      for (int i = 0; i < K * K; i++) sum[i % 2] += load(rows[i / K] + (w + i % K) * WIDE) * taps[i];
      each(w, sum[0] + sum[1]);
    }
  }

 private:
  long width() const { return (of_.W + K - 1) * WIDE; }
  float* place(long row) const { return rows_ + (row + K) % K * width(); }

  Image of_;
  long first_;
  float *taps_, *rows_;
  f32 bias_[WIDE / LANES];
};

template <int K>
void convolve(const Image& of, long first, long channels, const bf16* weight, const bf16* bias, bool gate,
              const bf16* mix, bf16* y) {
  static thread_local Scratch memory, gates, sums, packed;
  const long size = Column<K>::size(of.W);
  float* at = memory.get<float>((1 + gate) * size);
  Column<K> value(of, first, weight, bias, at);
  std::optional<Column<K>> other;
  if (gate) other.emplace(of, first + channels, weight, bias, at + size);
  const Engine& e = engine();
  float* open = gates.get<float>(of.W * LANES);
  bf16* d = sums.get<bf16>(of.W * WIDE);
  char* b = packed.get<char>(e.packed(WIDE));
  if (mix) e.pack_columns(mix + first * WIDE, WIDE, WIDE, WIDE, WIDE, b);
  y += first;
  for (long h = 0; h < of.H; h++, y += of.W * channels) {
    value.read(h + K / 2);
    if (gate) other->read(h + K / 2);
    bf16* to = mix ? d : y;
    const long step = mix ? WIDE : channels;
    for (int c = 0; c < WIDE; c += LANES) {
      if (gate) other->sums(h, c, [=](long w, f32 sum) { store(open + w * LANES, silu(sum)); });
      value.sums(h, c, [=](long w, f32 sum) { store(to + w * step + c, gate ? sum * load(open + w * LANES) : sum); });
    }
    alignas(64) float c[MOST_ROWS * COLUMNS];
    for (long w = 0; w < of.W && mix; w += e.rows) {
      const int count = int(std::min<long>(e.rows, of.W - w));
      e.tile(d + w * WIDE, WIDE, 0, 1, WIDE, b, c, count);
      for (int r = 0; r < count; r++)
        for (int j = 0; j < WIDE; j += LANES) store(y + (w + r) * channels + j, load(c + r * COLUMNS + j));
    }
  }
}

}  // namespace

// x [batch, H, W, C], weight [K, K, C], K 3 or 5, y [batch, H, W, C] or of a gate [batch, H, W, C / 2], a multiple of 32
// channels. mix [C / 32, 32, 32], channels in by channels out, without a gate; may be null.
void depthwise2d(const bf16* x, long batch, long H, long W, long C, int K, const bf16* weight, const bf16* bias,
                 bool silu_input, bool gate, const bf16* mix, bf16* y, int threads) {
  const long channels = gate ? C / 2 : C, blocks = channels / WIDE;
  in_parallel(batch * blocks, threads, [=](long task) {
    const long song = task / blocks, first = task % blocks * WIDE;
    const Image of = {x + song * H * W * C, H, W, C, silu_input};
    (K == 3 ? convolve<3> : convolve<5>)(of, first, channels, weight, bias, gate, mix, y + song * H * W * channels);
  });
}

}  // namespace LEVEL
