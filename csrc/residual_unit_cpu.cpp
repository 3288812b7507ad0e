// Residual unit of the v1.5 audio autoencoder on a CPU.
//
// Math     y = x + b2 + W2 snake2(b1 + conv7_d(snake1(x))), and the next layer's snake of it         fp32, rounded where
//          an engine reads it and at the end
// Tiling   all weights are packed once. A thread takes a tile of rows: snake1 of them and of 3 d neighbours a side into
//          memory of its own, seven taps there, snake2, the 1x1 convolution; what lies between fits half its second cache
// Bytes    x in (with neighbours), y out; packed weights once for each tile, from the last cache
// Bound    the engine's products, 16 L C**2; the two or three snakes add a tenth at C = 128 with AVX-512 BF16
#include "cpu/convolution.h"
#include "cpu/finish.h"

namespace LEVEL {

namespace {

constexpr int TAPS = 7;

// Tiles of a song's rows: as many for each thread, of whole tiles of the engine.
struct Tiles {
  long rows, count;

  Tiles(long L, long bytes_of_a_row, long halo, int threads) {
    const long step = engine().rows, fitting = (inner_cache() / 2 / bytes_of_a_row - halo) / 2;
    const long most = std::max(step, fitting / step * step);
    count = (L + most - 1) / most;
    count = (count + threads - 1) / threads * threads;
    rows = ((L + count - 1) / count + step - 1) / step * step;
    count = (L + rows - 1) / rows;
  }
};

// c = a tile of rows times all columns, a few blocks at a time that fit a quarter of the second cache.
void multiply(const bf16* a, long rows, long stride, long tap, int taps, long C, const char* packed, const Results& to,
              long at, long step) {
  const Engine& e = engine();
  const size_t bytes = e.packed(taps * C);
  const long blocks = C / COLUMNS, group = std::max(1L, inner_cache() / 4 / long(bytes));
  alignas(64) float c[MOST_ROWS * COLUMNS];
  for (long first = 0; first < blocks; first += group)
    for (long row = 0; row < rows; row += e.rows) {
      const int count = int(std::min<long>(e.rows, rows - row));
      for (long i = first; i < std::min(first + group, blocks); i++) {
        e.tile(a + row * stride, stride, tap, taps, int(C), packed + i * bytes, c, count);
        for (long j = 0; j < COLUMNS; j += LANES)
          finish(to, c + j, count, i * COLUMNS + j, LANES, at + row * step + i * COLUMNS + j, step);
      }
    }
}

}  // namespace

void residual_unit(const bf16* x, const bf16* activated, long songs, long L, long C, const float* alpha1,
                   const float* inv_beta1, const bf16* w1, const bf16* b1, const float* alpha2, const float* inv_beta2,
                   const bf16* w2, int dilation, const Results& to, int threads) {
  const Engine& e = engine();
  const size_t bytes1 = e.packed(TAPS * C), bytes2 = e.packed(C);
  const long blocks = C / COLUMNS, reach = TAPS / 2 * dilation, stride = C + COLUMNS;
  static thread_local Scratch weights;
  char* packed1 = weights.get<char>(blocks * (bytes1 + bytes2));
  char* packed2 = packed1 + blocks * bytes1;
  in_parallel(blocks, threads, [&](long i) {
    e.pack_rows(w1 + i * COLUMNS * TAPS * C, TAPS * C, COLUMNS, int(TAPS * C), packed1 + i * bytes1);
    e.pack_rows(w2 + i * COLUMNS * C, C, COLUMNS, int(C), packed2 + i * bytes2);
  });
  const Tiles tiles(L, stride * sizeof(bf16), 2 * reach, threads);
  in_parallel(songs * tiles.count, threads, [&](long task) {
    static thread_local Scratch scratch;
    const long song = task / tiles.count * L, first = task % tiles.count * tiles.rows;
    const long rows = std::min(tiles.rows, L - first);
    bf16* snaked = scratch.get<bf16>((2 * tiles.rows + 2 * reach) * stride);
    bf16* hidden = snaked + (tiles.rows + 2 * reach) * stride;
    rows_or_zeros(first - reach, first + rows + reach, L, C, snaked, stride, [&](long row, bf16* into) {
      if (activated) return std::memcpy(into, activated + (song + row) * C, C * sizeof(bf16)), void();
      const bf16* from = x + (song + row) * C;
      for (long c = 0; c < C; c += LANES)
        store(into + c, snake(load(from + c), load(alpha1 + c), load(inv_beta1 + c)));
    });
    const Results between = {nullptr, hidden, C, b1, nullptr, nullptr, 1, alpha2, inv_beta2};
    multiply(snaked, rows, stride, dilation * stride, TAPS, C, packed1, between, 0, stride);
    multiply(hidden, rows, stride, 0, 1, C, packed2, to, (song + first) * C, C);
  });
}

}  // namespace LEVEL
