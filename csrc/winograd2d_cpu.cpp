// 3x3 convolution of images on a CPU by Winograd's F(2x2, 3x3), also of images with each pixel twice along both axes.
//
// Math     acefast.ops.winograd2d: V of S x S pixels, M[k] = V[k] W[k] for k < S * S, four results of M, S = 4, or 3 where
//          pixels are there twice; then bias and the shortcut, and SiLU where it is asked for      fp32, V and y rounded
// Tiling   all weights are packed once. A thread takes some tiles of 2x2 results: V of all their channels, then M and the
//          results of 32 columns at a time; V and M of these tiles fill half its second cache
// Bytes    x once from memory, four times from the caches (S = 3: nine times); y out; packed weights once for each thread's
//          tiles at a time, from the last cache
// Bound    the engine's products, 2 S * S Cin Cout a tile: 4 / 9 of what a direct sum takes, 9 / 16 of four phases of 2x2
//          taps; the rest takes a quarter of the time with 128 channels, an eighth with 512 (measured, Zen 4)
#include <algorithm>

#include "cpu/machine.h"
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {

namespace {

template <int S>
struct Images {
  static constexpr int STEP = S == 3 ? 1 : 2;  // pixels from one tile to the next

  const bf16* x;
  long songs, T, W, C;
  const bf16* zeros;  // C of them, what lies beyond an image

  const bf16* pixel(long song, long row, long column) const {
    const bool inside = row >= 0 && row < T && column >= 0 && column < W;
    return inside ? x + ((song * T + row) * W + column) * C : zeros;
  }

  long height() const { return S == 3 ? 2 * T : T; }  // of the results
  long width() const { return S == 3 ? 2 * W : W; }
};

// A tile of 2x2 results among all of a batch, `across` in a row and `down` in a column.
struct Tile {
  long down, across, song, t, f;

  Tile(long down, long across, long index)
      : down(down), across(across), song(index / across / down), t(index / across % down), f(index % across) {}

  void next() {
    if (++f == across) f = 0, t++;
    if (t == down) t = 0, song++;
  }
};

// S numbers of V from as many pixels along one axis; both lie `apart`.
template <int S>
inline void analyse(const f32* d, f32* v, int apart) {
  const f32 a = d[0], b = d[apart], c = d[2 * apart];
  if constexpr (S == 3)
    v[0] = a - b, v[apart] = b, v[2 * apart] = b - c;
  else
    v[0] = a - c, v[apart] = b + c, v[2 * apart] = c - b, v[3 * apart] = b - d[3 * apart];
}

// Two results from S products along one axis.
template <int S>
inline void synthesise(const f32* m, int apart, f32& first, f32& second) {
  const f32 a = m[0], b = m[apart], c = m[2 * apart];
  if constexpr (S == 3)
    first = a + b, second = b - c;
  else
    first = a + b + c, second = b - c - m[3 * apart];
}

// V of one tile, whose S * S rows of C lie `apart`.
template <int S>
void transform(const Images<S>& a, const Tile& tile, bf16* v, long apart) {
  const long top = a.STEP * tile.t - 1, left = a.STEP * tile.f - 1;
  const bf16* pixels[S * S];
  for (int k = 0; k < S * S; k++) pixels[k] = a.pixel(tile.song, top + k / S, left + k % S);
  for (long c = 0; c < a.C; c += LANES) {
    f32 d[S * S], half[S * S];
    for (int k = 0; k < S * S; k++) d[k] = load(pixels[k] + c);
    for (int k = 0; k < S; k++) analyse<S>(d + k, half + k, S);
    for (int k = 0; k < S; k++) analyse<S>(half + S * k, d + S * k, 1);
    for (int k = 0; k < S * S; k++) store(v + k * apart + c, d[k]);
  }
}

// What becomes of sums: y = them + bias + shortcut, and SiLU of that.
struct Layer {
  const bf16* bias;  // may be null
  bool silu;
  bf16* y;
  long N;  // numbers of a pixel of y
};

// Results column to column + n < N of one tile, of products that lie `apart`.
template <int S>
void results(const Images<S>& a, const Tile& tile, const float* m, long apart, const Layer& to, long column, int n) {
  f32 product[S * S], half[2 * S], sum[4];
  for (int k = 0; k < S * S; k++) product[k] = load(m + k * apart);
  for (int k = 0; k < S; k++) synthesise<S>(product + k, S, half[k], half[S + k]);
  for (int k = 0; k < 2; k++) synthesise<S>(half + S * k, 1, sum[2 * k], sum[2 * k + 1]);
  u32 pairs{};  // of the shortcut: the first of each for the left results
  if (S == 3) std::memcpy(&pairs, a.pixel(tile.song, tile.t, tile.f) + 2 * column, n * sizeof(uint32_t));
  const f32 bias = to.bias ? load(to.bias + column, n) : f32{};
  for (int k = 0; k < 4; k++) {
    const long t = 2 * tile.t + k / 2, f = 2 * tile.f + k % 2;
    if (t == a.height() || f == a.width()) continue;
    f32 y = sum[k] + bias;
    if (S == 3) y += (f32)(k % 2 ? pairs & 0xffff0000 : pairs << 16);
    if (to.silu) y = silu(y);
    store(to.y + ((tile.song * a.height() + t) * a.width() + f) * to.N + column, y, n);
  }
}

template <int S>
void convolve(const Images<S>& a, const bf16* w, const Layer& to, int threads) {
  constexpr int PRODUCTS = S * S;
  const Engine& e = engine();
  const size_t bytes = e.packed(a.C);
  const long N = to.N, blocks = (N + COLUMNS - 1) / COLUMNS, stride = a.C + COLUMNS;
  static thread_local Scratch weights;
  char* packed = weights.get<char>(blocks * PRODUCTS * bytes);
  in_parallel(blocks * PRODUCTS, threads, [&](long i) {
    const long column = i / PRODUCTS * COLUMNS;
    e.pack_rows(w + (i % PRODUCTS * N + column) * a.C, a.C, int(std::min<long>(COLUMNS, N - column)), int(a.C),
                packed + i * bytes);
  });
  const long down = (a.height() + 1) / 2, across = (a.width() + 1) / 2, count = a.songs * down * across;
  const long fitting = inner_cache() / 2 / (PRODUCTS * (stride * sizeof(bf16) + COLUMNS * sizeof(float)));
  const long most = std::max<long>(e.rows, fitting / e.rows * e.rows);
  in_parallel((count + most - 1) / most, threads, [&](long task) {
    static thread_local Scratch inputs, products;
    bf16* v = inputs.get<bf16>(PRODUCTS * most * stride);
    float* m = products.get<float>(PRODUCTS * most * COLUMNS);
    const long tiles = std::min(most, count - task * most);
    const Tile first(down, across, task * most);
    Tile tile = first;
    for (long i = 0; i < tiles; i++, tile.next()) transform<S>(a, tile, v + i * stride, most * stride);
    for (long block = 0; block < blocks; block++) {
      for (int k = 0; k < PRODUCTS; k++)
        for (long row = 0; row < tiles; row += e.rows)
          e.tile(v + (k * most + row) * stride, stride, 0, 1, int(a.C), packed + (block * PRODUCTS + k) * bytes,
                 m + (k * most + row) * COLUMNS, int(std::min<long>(e.rows, tiles - row)));
      const long columns = std::min<long>(COLUMNS, N - block * COLUMNS);
      tile = first;
      for (long i = 0; i < tiles; i++, tile.next())
        for (long j = 0; j < columns; j += LANES)
          results<S>(a, tile, m + i * COLUMNS + j, most * COLUMNS, to, block * COLUMNS + j,
                     int(std::min<long>(LANES, columns - j)));
    }
  });
}

}  // namespace

// w[S * S, N, C] with S = 3 where `twice`; C is 2 N then. zeros: C of them.
void winograd2d(const bf16* x, long songs, long T, long W, long C, const bf16* w, long N, const bf16* bias, bool twice,
                bool silu, const bf16* zeros, bf16* y, int threads) {
  const Layer to = {bias, silu, y, N};
  if (twice)
    convolve<3>({x, songs, T, W, C, zeros}, w, to, threads);
  else
    convolve<4>({x, songs, T, W, C, zeros}, w, to, threads);
}

}  // namespace LEVEL
