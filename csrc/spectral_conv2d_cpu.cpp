// 3x3 convolution of images on a CPU, by Fourier transforms of 8x8 pixels.
//
// Math     acefast.ops.spectral_conv2d: 10x10 pixels become 142 factors, these are multiplied by the filter's, and the
//          products become 8x8 results; then as conv1d_cpu.cpp                fp32, but for the factors of x: rounded
// Tiling   a thread takes some tiles of 8x8 results from x to y: their factors, then for each block of 32 columns all
//          products and the way back. The products of 48 tiles nearly fill a second cache, their factors come from the
//          last one, once for each block. Where w is much more than these, threads share its blocks
// Bytes    w once for each thread's 48 tiles, from memory where it is as large as 512 channels make it (74 MB), to be
//          packed first unless it is panels; x and y once
// Bound    the engine's products, 4.44 Cin Cout for each pixel in place of 18 Cin Cout; beside them an eighth of the time
//          with 512 channels, three tenths with 128 (measured, Zen 4)
#include <algorithm>

#include "cpu/finish.h"
#include "cpu/fourier.h"
#include "cpu/panels.h"
#include "cpu/pieces.h"

namespace LEVEL {

namespace {

constexpr int POINTS = 8, HALF = POINTS / 2, SIDE = POINTS + 2;
constexpr int PRODUCTS = 4 * (4 + 3 * (HALF - 1)) + (HALF - 1) * 3 * SIDE;

// Where tile `index` lies among all of a batch, `across` in a row and `down` in a column.
struct Tile {
  long song, t, f;  // of the first result

  Tile(long down, long across, long index)
      : song(index / across / down), t(index / across % down * POINTS), f(index % across * POINTS) {}
};

// A line of SIDE numbers: what the circle of those between the ends lacks at the ends, and its frequencies 0 to HALF.
struct Line {
  f32 first, last, re[HALF + 1], im[HALF + 1];
};

INLINE Line analysed(const f32* d) {
  Line line;
  line.first = d[0] - d[POINTS], line.last = d[SIDE - 1] - d[1];
  transform<POINTS>(d + 1, line.re, line.im);
  return line;
}

// POINTS results of a line of products.
INLINE void synthesise(const Line& line, f32* y) {
  invert<POINTS>(line.re, line.im, y);
  y[0] += line.first, y[POINTS - 1] += line.last;
}

// Writes one factor after another, `step` numbers apart.
struct Factors {
  bf16* to;
  long step;

  INLINE void add(f32 v) { store_factor(to, v), to += step; }
  INLINE void add(f32 re, f32 im) { add(re + im), add(re), add(im); }

  INLINE void of_real(const f32* d) {
    const Line a = analysed(d);
    add(a.first), add(a.last), add(a.re[0]), add(a.re[HALF]);
    for (int f = 1; f < HALF; f++) add(a.re[f], a.im[f]);
  }

  // Frequencies of re + i im: of each pair f and -f both.
  INLINE void of_complex(const f32* re, const f32* im) {
    const Line a = analysed(re), b = analysed(im);
    add(a.first, b.first), add(a.last, b.last), add(a.re[0], b.re[0]), add(a.re[HALF], b.re[HALF]);
    for (int f = 1; f < HALF; f++) {
      add(a.re[f] - b.im[f], a.im[f] + b.re[f]);
      add(a.re[f] + b.im[f], b.re[f] - a.im[f]);
    }
  }
};

// Reads one product after another, `step` numbers apart: the same in the other direction.
struct Products {
  const float* from;
  long step;

  INLINE f32 next() {
    const f32 v = load(from);
    from += step;
    return v;
  }
  INLINE void next(f32& re, f32& im) {
    const f32 both = next(), a = next(), b = next();
    re = both - b, im = both + a;
  }

  INLINE void to_real(f32* y) {
    Line a;
    a.first = next(), a.last = next(), a.re[0] = next(), a.re[HALF] = next();
    for (int f = 1; f < HALF; f++) next(a.re[f], a.im[f]);
    synthesise(a, y);
  }

  INLINE void to_complex(f32* re, f32* im) {
    Line a, b;
    next(a.first, b.first), next(a.last, b.last), next(a.re[0], b.re[0]), next(a.re[HALF], b.re[HALF]);
    for (int f = 1; f < HALF; f++) {
      f32 one, one_im, other, other_im;
      next(one, one_im), next(other, other_im);
      a.re[f] = 0.5f * (one + other), a.im[f] = 0.5f * (one_im - other_im);
      b.re[f] = 0.5f * (one_im + other_im), b.im[f] = 0.5f * (other - one);
    }
    synthesise(a, re), synthesise(b, im);
  }
};

// A column of pixels or results as its line: rows 0 and 1 first and last, 2 and 3 frequencies 0 and HALF, then pairs.
constexpr int re_row(int f) { return f == 0 ? 2 : f == HALF ? 3 : 2 + 2 * f; }
constexpr int im_row(int f) { return 3 + 2 * f; }

// 16 channels, from channel i on, of SIDE x SIDE pixels: their factors, `step` numbers from each other.
void analyse(const bf16* const* pixels, long i, bf16* to, long step) {
  f32 lines[SIDE][SIDE];
  for (int column = 0; column < SIDE; column++) {
    f32 d[SIDE];
    for (int row = 0; row < SIDE; row++) d[row] = load(pixels[row * SIDE + column] + i);
    const Line a = analysed(d);
    lines[0][column] = a.first, lines[1][column] = a.last;
    for (int f = 0; f <= HALF; f++) lines[re_row(f)][column] = a.re[f];
    for (int f = 1; f < HALF; f++) lines[im_row(f)][column] = a.im[f];
  }
  Factors factors = {to, step};
  for (int row = 0; row < 4; row++) factors.of_real(lines[row]);
  for (int f = 1; f < HALF; f++) factors.of_complex(lines[re_row(f)], lines[im_row(f)]);
}

// 16 columns of all products c[m * step] become POINTS x POINTS results y[t][f][32].
void synthesise(const float* c, long step, float* y) {
  f32 lines[SIDE][POINTS];
  Products products = {c, step};
  for (int row = 0; row < 4; row++) products.to_real(lines[row]);
  for (int f = 1; f < HALF; f++) products.to_complex(lines[re_row(f)], lines[im_row(f)]);
  for (int column = 0; column < POINTS; column++) {
    Line a;
    a.first = lines[0][column], a.last = lines[1][column];
    for (int f = 0; f <= HALF; f++) a.re[f] = lines[re_row(f)][column];
    for (int f = 1; f < HALF; f++) a.im[f] = lines[im_row(f)][column];
    f32 results[POINTS];
    synthesise(a, results);
    for (int t = 0; t < POINTS; t++) store(y + (t * POINTS + column) * COLUMNS, results[t]);
  }
}

}  // namespace

// w[N, 142 C] or panels of it; to.width is N.
void spectral_conv2d(const bf16* x, long songs, long T, long W, long C, const bf16* w, bool panels, const Results& to,
                     int threads) {
  const Engine& e = engine();
  const long N = to.width, apart = PRODUCTS * C + COLUMNS;
  const long down = (T + POINTS - 1) / POINTS, across = (W + POINTS - 1) / POINTS, tiles = songs * down * across;
  const char* b = packed_columns(w, panels, N, PRODUCTS * C, threads);
  static thread_local Scratch nothing;
  bf16* beyond = nothing.get<bf16>(C);  // an image
  std::memset(beyond, 0, C * sizeof(bf16));
  const auto factors = [&](long from, long i, long, bf16* v) {
    const Tile tile(down, across, from + i);
    const bf16* pixels[SIDE * SIDE];
    for (int k = 0; k < SIDE * SIDE; k++) {
      const long t = tile.t - 1 + k / SIDE, f = tile.f - 1 + k % SIDE;
      const bool inside = t >= 0 && t < T && f >= 0 && f < W;
      pixels[k] = inside ? x + ((tile.song * T + t) * W + f) * C : beyond;
    }
    for (long c = 0; c < C; c += LANES) analyse(pixels, c, v + i * apart + c, C);
  };
  // A block of columns of `count` tiles, from their factors to y.
  const auto columns = [&](long from, long count, const bf16* v, long block) {
    static thread_local Scratch sums;
    const long step = count * COLUMNS + LANES, rows = even_rows(count, e.rows);
    float* c = sums.get<float>(PRODUCTS * step);
    for (long m = 0; m < PRODUCTS; m++)
      for (long i = 0; i < count; i += rows)
        e.tile(v + i * apart + m * C, apart, 0, 1, int(C), b + (block * PRODUCTS + m) * e.packed(C),
               c + m * step + i * COLUMNS, int(std::min(rows, count - i)));
    for (long i = 0; i < count; i++) {
      const Tile tile(down, across, from + i);
      const int width = int(std::min<long>(POINTS, W - tile.f));
      alignas(64) float y[POINTS * POINTS * COLUMNS];
      const long column = block * COLUMNS;
      const int n = int(std::min(N - column, long(COLUMNS)));
      for (int j = 0; j < n; j += LANES) synthesise(c + i * COLUMNS + j, step, y + j);
      for (long t = 0; t < std::min<long>(POINTS, T - tile.t); t++)
        finish(to, y + t * POINTS * COLUMNS, width, column, n, ((tile.song * T + tile.t + t) * W + tile.f) * N + column,
               N);
    }
  };
  const auto room = [&](long count) {
    static thread_local Scratch of_x;
    return of_x.get<bf16>(count * apart);
  };
  by_pieces(tiles, N, threads, room, factors, columns);
}

}  // namespace LEVEL
