// Transposed 1-D convolution of rows, kernel 2 s, stride s, padding s / 2, on a CPU.
//
// Math     rows t = 0 .. L of [x[t], x[t - 1]] @ w, seen as [(L + 1) s, Cout], without the first and the last s / 2 of
//          these; + bias, and what the next layer's snake or SiLU makes of it                        fp32, rounded once
// Tiling   a product whose rows have two taps, one row apart; as csrc/conv1d_cpu.cpp, and 16 columns are of one row of y
// Bytes    w once from memory; x copied between zeros once, and read once for each group of blocks; y written once
// Bound    the engine's products: 4 (L + 1) s Cin Cout
#include "cpu/finish.h"
#include "cpu/padded.h"
#include "cpu/product.h"

namespace LEVEL {

void conv_transpose1d(const bf16* x, long L, long Cin, const bf16* w, int s, const Results& to, int threads) {
  static thread_local Scratch scratch;
  const long apart = Cin + COLUMNS, Cout = to.width, N = s * Cout;
  const bf16* copy = padded(x, L, Cin, 1, apart, scratch, threads);
  const auto pack = [=](int, long block, void* packed) {
    const long column = block * COLUMNS, K = 2 * Cin;
    engine().pack_columns(w + column, N, int(std::min<long>(COLUMNS, N - column)), int(K), int(K), packed);
  };
  packed_product<1>({copy + apart, L + 1, Cin, apart, -apart, 2}, N, threads, pack,
                    [&](long row, int count, long column, int columns, const float* c) {
                      for (int j = 0; j < columns; j += LANES) {
                        const long offset = (column + j) / Cout - s / 2;  // rows of y from row * s
                        const int skipped = row * s + offset < 0;
                        const int end = (row + count - 1) * s + offset < s * L ? count : count - 1;
                        finish(to, c + skipped * COLUMNS + j, end - skipped, (column + j) % Cout, LANES,
                               ((row + skipped) * s + offset) * Cout + (column + j) % Cout, N);
                      }
                    });
}

}  // namespace LEVEL
