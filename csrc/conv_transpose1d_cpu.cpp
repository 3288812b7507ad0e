// Transposed 1-D convolution of rows, kernel 2 s, stride s, padding s / 2, on a CPU.
//
// Math     rows t = 0 .. L of [x[t], x[t - 1]] @ w, seen as [(L + 1) s, Cout], without the first and the last s / 2 of
//          these; + bias, and what the next layer's snake or SiLU makes of it                        fp32, rounded once
// Tiling   csrc/cpu/convolution.h: two taps, the earlier row first; 16 columns of its result are of one row of y. Where
//          s Cout is a divisor of 32, several rows of these are a tile's columns
// Bytes    as csrc/conv1d_cpu.cpp; y written once
// Bound    the engine's products: 4 (L + 1) s Cin Cout
#include "cpu/convolution.h"
#include "cpu/finish.h"

namespace LEVEL {

void conv_transpose1d(const bf16* x, long L, long Cin, const bf16* w, int s, const Results& to, int threads) {
  const long Cout = to.width, N = s * Cout;
  const int K = int(Cin);
  const Convolution convolution = {x, L, Cin, L + 1, 2, 1, 1, 1};
  if (N < COLUMNS && COLUMNS % N == 0) {
    const Repeated repeated(to);
    return convolve_narrow(
        convolution, N, threads,
        [=](long o, bf16* into) {
          for (long k = 0; k < 2 * Cin; k++) into[k] = w[(k + (k < Cin ? Cin : -Cin)) * N + o];
        },
        [&](long row, long count, const float* c) {
          const long half = s / 2 * Cout, at = row * N - half;  // of y; there are none before it and behind it
          const long first = std::max(at, 0L), last = std::min(at + count * N, s * L * Cout);
          finish_rows(repeated, c + (first - at), last - first, first);
        });
  }
  convolve(
      convolution, N, threads,
      [=](long column, int count, char* packed) {
        engine().pack_columns(w + Cin * N + column, N, count, K, K, packed);
        engine().pack_columns(w + column, N, count, K, K, packed + engine().packed(K));
      },
      [&](long row, int count, long column, int columns, const float* c) {
        for (int j = 0; j < columns; j += LANES) {
          const long own = (column + j) % Cout, offset = (column + j) / Cout - s / 2;  // rows of y after row * s
          const int skipped = row * s + offset < 0, end = count - ((row + count - 1) * s + offset >= s * L);
          finish(to, c + skipped * COLUMNS + j, end - skipped, own, LANES,
                 ((row + skipped) * s + offset) * Cout + own, N);
        }
      });
}

}  // namespace LEVEL
