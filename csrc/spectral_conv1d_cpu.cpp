// 1-D convolution of rows with a long filter on a CPU, by Fourier transforms of 32 rows.
//
// Math     acefast.ops.spectral_conv1d: a piece of 34 rows, or of a snake of them, becomes 17 frequencies and two
//          differences of its ends, which are multiplied by the filter's as 49 real products, and 35 - K results; then as
//          conv1d_cpu.cpp                                                      fp32, but for what is multiplied: rounded
// Tiling   a thread takes a few pieces of rows from x to y: their frequencies, then for each block of 32 columns all
//          products and the way back. The frequencies of 48 pieces of 128 channels fill half of a second cache, those of
//          512 come from the last one, once for each block. Where w is much more than these, threads share its blocks
// Bytes    w once from memory, to be packed unless it is panels; packed, once from the last cache for each share of pieces,
//          from end to end: a block's 49 filters lie one behind another
// Bound    the engine's products, 98 / (35 - K) Cin Cout for each row in place of 2 K Cin Cout; the transforms, near 1.5
//          cycles for each number of x and of y
#include <algorithm>

#include "cpu/finish.h"
#include "cpu/fourier.h"
#include "cpu/panels.h"
#include "cpu/pieces.h"

namespace LEVEL {

namespace {

constexpr int POINTS = 32, HALF = POINTS / 2, FREQUENCIES = 2 + 3 * (HALF - 1), PRODUCTS = FREQUENCIES + 2;
constexpr int ROWS = POINTS + 2;  // of a piece: those of the transform, and one before and behind

// Where piece `piece` of `each` a phase lies: a dilated filter sees interleaved rows, phase by phase, as songs of their own.
struct Piece {
  long first;    // row of the song in which its results begin
  long count;    // of these, at most 35 - K
  long song;

  Piece(long piece, long each, long phases, long hop, long L) {
    const long phase = piece / each % phases;
    song = piece / each / phases;
    first = phase + piece % each * hop * phases;
    count = std::max(0L, std::min(hop, (L - first + phases - 1) / phases));
  }
};

// 16 channels of 34 rows: the factors of all products, `step` numbers from each other.
void analyse(const f32* rows, bf16* to, long step) {
  f32 re[HALF + 1], im[HALF + 1];
  store_factor(to + FREQUENCIES * step, rows[0] - rows[POINTS]);
  store_factor(to + (FREQUENCIES + 1) * step, rows[ROWS - 1] - rows[1]);
  transform<POINTS>(rows + 1, re, im);
  store_factor(to, re[0]);
  for (int f = 1; f < HALF; f++) {
    store_factor(to + (3 * f - 2) * step, re[f] + im[f]);
    store_factor(to + (3 * f - 1) * step, re[f]);
    store_factor(to + 3 * f * step, im[f]);
  }
  store_factor(to + (FREQUENCIES - 1) * step, re[HALF]);
}

// 16 columns of all products c[m * step] become `hop` results y[t][32]. Those of the transform begin with the second one,
// and its last row is that before: it and the one behind the results have a tap that came from the other end.
void synthesise(const float* c, long step, long hop, float* y) {
  f32 rows[POINTS], re[HALF + 1], im[HALF + 1];
  re[0] = load(c), re[HALF] = load(c + (FREQUENCIES - 1) * step);
  for (int f = 1; f < HALF; f++) {
    const f32 both = load(c + (3 * f - 2) * step);
    re[f] = both - load(c + 3 * f * step), im[f] = both + load(c + (3 * f - 1) * step);
  }
  invert<POINTS>(re, im, rows);
  store(y, rows[POINTS - 1] + load(c + FREQUENCIES * step));
  for (int t = 0; t <= POINTS; t++) store(y + (t + 1) * COLUMNS, rows[t % POINTS]);
  float* last = y + (hop - 1) * COLUMNS;
  store(last, load(last) + load(c + (FREQUENCIES + 1) * step));
}

}  // namespace

void spectral_conv1d(const bf16* x, long songs, long L, long C, const float* alpha, const float* inv_beta, const bf16* w,
                     bool panels, long N, int taps, long dilation, const Results& to, int threads) {
  const Engine& e = engine();
  const long hop = ROWS - taps + 1, reach = dilation * (taps - 1) / 2;
  const long each = ((L + dilation - 1) / dilation + hop - 1) / hop, pieces = songs * dilation * each;
  const long apart = C + COLUMNS;
  const size_t bytes = e.packed(C);
  const char* b = packed_columns(w, panels, N, PRODUCTS * C, threads);
  // Of piece from + p, to its place among `count`.
  const auto frequencies = [&](long from, long p, long count, bf16* spectra) {
    const Piece piece(from + p, each, dilation, hop, L);
    const long first = piece.first - reach;  // of x
    const long begin = first < 0 ? (-first + dilation - 1) / dilation : 0;
    const long end = piece.count ? (L - first + dilation - 1) / dilation : 0;
    const bf16* at = x + (piece.song * L + first) * C;
    for (long i = 0; i < C; i += COLUMNS) {  // a line of memory, which is read once
      f32 rows[2][ROWS];
      for (long n = 0; n < ROWS; n++)
        for (long j = 0; j < 2; j++)
          rows[j][n] = n >= begin && n < end ? load(at + n * dilation * C + i + j * LANES) : f32{};
      for (long n = ROWS; n < ROWS + hop; n++)  // of the next piece, for which most of the time here would be spent waiting: measured
        __builtin_prefetch(at + n * dilation * C + i, 0, 2);
      for (long j = 0; j < 2; j++) {
        const long channel = i + j * LANES;
        if (alpha)
          for (f32& row : rows[j]) row = snake(row, load(alpha + channel), load(inv_beta + channel));
        analyse(rows[j], spectra + p * apart + channel, count * apart + COLUMNS);
      }
    }
  };
  // A block of columns of `count` pieces, from their frequencies to y.
  const auto columns = [&](long from, long count, const bf16* spectra, long block) {
    static thread_local Scratch sums;
    const long step = count * COLUMNS + LANES, rows = even_rows(count, e.rows);
    float* c = sums.get<float>(PRODUCTS * step);
    for (long m = 0; m < PRODUCTS; m++)
      for (long p = 0; p < count; p += rows)
        e.tile(spectra + m * (count * apart + COLUMNS) + p * apart, apart, 0, 1, int(C), b + (block * PRODUCTS + m) * bytes,
               c + m * step + p * COLUMNS, int(std::min(rows, count - p)));
    for (long p = 0; p < count; p++) {
      const Piece piece(from + p, each, dilation, hop, L);
      alignas(64) float y[ROWS * COLUMNS];
      const long column = block * COLUMNS;
      const int width = int(std::min(N - column, long(COLUMNS)));
      for (long j = 0; j < width; j += LANES) synthesise(c + p * COLUMNS + j, step, hop, y + j);
      finish(to, y, int(piece.count), column, width, (piece.song * L + piece.first) * N + column, dilation * N);
    }
  };
  const auto room = [&](long count) {
    static thread_local Scratch of_x;
    return of_x.get<bf16>(PRODUCTS * (count * apart + COLUMNS));
  };
  by_pieces(pieces, N, threads, room, frequencies, columns);
}

}  // namespace LEVEL
