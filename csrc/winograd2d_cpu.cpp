// 3x3 convolution of images with each pixel twice along both axes on a CPU, by Winograd's F(2x2, 3x3).
//
// Math     acefast.ops.winograd2d: V of 3x3 pixels, M[k] = V[k] W[k] for k < 9, four results of M; then bias and the
//          shortcut                                                                     fp32, V and y rounded
// Tiling   a thread takes some tiles of 2x2 results, each the four of one pixel: V of all their channels, then M and the
//          results of 32 columns at a time; V and M of these tiles fill half its second cache
// Bytes    x once from memory, nine times from the caches; y out; w once for each thread's tiles at a time, from the last
//          cache, to be packed first unless it is panels
// Bound    the engine's products, 18 Cin Cout a tile: 9 / 16 of four phases of 2x2 taps; the rest takes a quarter of the
//          time with 128 channels, an eighth with 512 (measured, Zen 4)
#include <algorithm>

#include "cpu/machine.h"
#include "cpu/panels.h"
#include "cpu/vector.h"

namespace LEVEL {

namespace {

constexpr int SIDE = 3, PRODUCTS = SIDE * SIDE;

struct Images {
  const bf16* x;
  long T, W, C;
  const bf16* zeros;  // C of them, what lies beyond an image

  const bf16* pixel(long song, long row, long column) const {
    const bool inside = row >= 0 && row < T && column >= 0 && column < W;
    return inside ? x + ((song * T + row) * W + column) * C : zeros;
  }
};

// A pixel among all of a batch.
struct Tile {
  long T, W, song, t, f;

  Tile(const Images& a, long index)
      : T(a.T), W(a.W), song(index / W / T), t(index / W % T), f(index % W) {}

  void next() {
    if (++f == W) f = 0, t++;
    if (t == T) t = 0, song++;
  }
};

// Three numbers of V from as many pixels along one axis; both lie `apart`.
inline void analyse(const f32* d, f32* v, int apart) {
  const f32 a = d[0], b = d[apart], c = d[2 * apart];
  v[0] = a - b, v[apart] = b, v[2 * apart] = b - c;
}

// Two results from three products along one axis.
inline void synthesise(const f32* m, int apart, f32& first, f32& second) {
  first = m[0] + m[apart], second = m[apart] - m[2 * apart];
}

// V of one tile, whose rows of C lie `apart`.
void transform(const Images& a, const Tile& tile, bf16* v, long apart) {
  const bf16* pixels[PRODUCTS];
  for (int k = 0; k < PRODUCTS; k++) pixels[k] = a.pixel(tile.song, tile.t - 1 + k / SIDE, tile.f - 1 + k % SIDE);
  for (long c = 0; c < a.C; c += LANES) {
    f32 d[PRODUCTS], half[PRODUCTS];
    for (int k = 0; k < PRODUCTS; k++) d[k] = load(pixels[k] + c);
    for (int k = 0; k < SIDE; k++) analyse(d + k, half + k, SIDE);
    for (int k = 0; k < SIDE; k++) analyse(half + SIDE * k, d + SIDE * k, 1);
    for (int k = 0; k < PRODUCTS; k++) store_factor(v + k * apart + c, d[k]);
  }
}

// Results column to column + n < N of one tile, of products that lie `apart`.
void results(const Images& a, const Tile& tile, const float* m, long apart, const bf16* biases, long N, long column,
             int n, bf16* y) {
  f32 product[PRODUCTS], half[2 * SIDE], sum[4];
  for (int k = 0; k < PRODUCTS; k++) product[k] = load(m + k * apart);
  for (int k = 0; k < SIDE; k++) synthesise(product + k, SIDE, half[k], half[SIDE + k]);
  for (int k = 0; k < 2; k++) synthesise(half + SIDE * k, 1, sum[2 * k], sum[2 * k + 1]);
  u32 pairs{};  // of the shortcut: the first of each for the left results
  std::memcpy(&pairs, a.pixel(tile.song, tile.t, tile.f) + 2 * column, n * sizeof(uint32_t));
  const f32 bias = biases ? load(biases + column, n) : f32{};
  for (int k = 0; k < 4; k++) {
    const long t = 2 * tile.t + k / 2, f = 2 * tile.f + k % 2;
    const f32 shortcut = (f32)(k % 2 ? pairs & 0xffff0000 : pairs << 16);
    store(y + ((tile.song * 2 * a.T + t) * 2 * a.W + f) * N + column, sum[k] + bias + shortcut, n);
  }
}

}  // namespace

// x[songs, T, W, 2 N], w[N, 9 2N] or panels of it.
void winograd2d(const bf16* x, long songs, long T, long W, const bf16* w, bool panels, long N, const bf16* bias, bf16* y,
                int threads) {
  const Engine& e = engine();
  const long C = 2 * N, blocks = (N + COLUMNS - 1) / COLUMNS, stride = C + COLUMNS, count = songs * T * W;
  const char* b = packed_columns(w, panels, N, PRODUCTS * C, threads);
  static thread_local Scratch nothing;
  bf16* zeros = nothing.get<bf16>(C);
  std::memset(zeros, 0, C * sizeof(bf16));
  const Images a = {x, T, W, C, zeros};
  const long fitting = inner_cache() / 2 / (PRODUCTS * (stride * sizeof(bf16) + COLUMNS * sizeof(float)));
  const long most = std::max<long>(e.rows, fitting / e.rows * e.rows);
  in_parallel((count + most - 1) / most, threads, [&](long task) {
    static thread_local Scratch inputs, products;
    bf16* v = inputs.get<bf16>(PRODUCTS * most * stride);
    float* m = products.get<float>(PRODUCTS * most * COLUMNS);
    const long tiles = std::min(most, count - task * most);
    const Tile first(a, task * most);
    Tile tile = first;
    for (long i = 0; i < tiles; i++, tile.next()) transform(a, tile, v + i * stride, most * stride);
    for (long block = 0; block < blocks; block++) {
      for (int k = 0; k < PRODUCTS; k++)
        for (long row = 0; row < tiles; row += e.rows)
          e.tile(v + (k * most + row) * stride, stride, 0, 1, int(C), b + (block * PRODUCTS + k) * e.packed(C),
                 m + (k * most + row) * COLUMNS, int(std::min<long>(e.rows, tiles - row)));
      const long columns = std::min<long>(COLUMNS, N - block * COLUMNS);
      tile = first;
      for (long i = 0; i < tiles; i++, tile.next())
        for (long j = 0; j < columns; j += LANES)
          results(a, tile, m + i * COLUMNS + j, most * COLUMNS, bias, N, block * COLUMNS + j,
                  int(std::min<long>(LANES, columns - j)), y);
    }
  });
}

}  // namespace LEVEL
