// 1-D convolution of rows on a CPU.
//
// Math     y[t, o] = share (bias[o] + sum_k sum_c w[o, k, c] x[t stride + k dilation - padding, c] + residual[t, o])
//          + total[t, o], and what the next layer's snake or SiLU makes of it                        fp32, rounded once
// Tiling   csrc/cpu/convolution.h. Where K Cout is at most 32 one product with all taps as columns, then K shifted sums:
//          2 outputs as 32 columns would be 16 times their products
// Bytes    w once from memory for each share of the rows; x once for each group of blocks, from the last cache
// Bound    the engine's products: 2 rows K Cin Cout, where Cout is no multiple of 32 those of the next one; of few outputs
//          64 rows Cin
#include "cpu/convolution.h"
#include "cpu/finish.h"

namespace LEVEL {

namespace {

// Of stride 1, w [Cout * K, Cin] of at most 32 rows and K of at least 2: all products of a few rows of x with them, then
// each row of y from K of these.
void few_outputs(const Convolution& a, const bf16* w, const Results& to, int threads) {
  constexpr long SHARE = 256;  // rows at a time
  const Engine& e = engine();
  const int columns = int(to.width * a.taps);
  const long reach = (a.taps - 1) * a.dilation;
  in_parallel((a.rows + SHARE - 1) / SHARE, threads, [&](long task) {
    static thread_local Scratch packed, scratch;
    char* b = packed.get<char>(e.packed(a.C));
    e.pack_rows(w, a.C, columns, int(a.C), b);
    const long from = task * SHARE, rows = std::min(SHARE, a.rows - from), begin = from - a.padding;  // of x
    const long first = std::max(begin, 0L), last = std::min(begin + rows + reach, a.L);
    float* sums = scratch.get<float>((SHARE + reach) * COLUMNS);
    std::memset(sums, 0, (rows + reach) * COLUMNS * sizeof(float));
    for (long row = first; row < last; row += e.rows)
      e.tile(a.x + row * a.C, a.C, 0, 1, int(a.C), b, sums + (row - begin) * COLUMNS,
             int(std::min<long>(e.rows, last - row)));
    alignas(64) float c[MOST_ROWS * COLUMNS] = {};
    for (long row = 0; row < rows; row += MOST_ROWS) {
      const int count = int(std::min<long>(MOST_ROWS, rows - row));
      for (int r = 0; r < count; r++)
        for (long o = 0; o < to.width; o++) {
          float sum = 0;
          for (long k = 0; k < a.taps; k++) sum += sums[(row + r + k * a.dilation) * COLUMNS + o * a.taps + k];
          c[r * COLUMNS + o] = sum;
        }
      finish(to, c, count, 0, int(to.width), (from + row) * to.width, to.width);
    }
  });
}

}  // namespace

void conv1d(const bf16* x, long L, long Cin, const bf16* w, long Cout, int taps, int stride, int padding, int dilation,
            long rows, const Results& to, int threads) {
  const long K = taps * Cin;
  const Convolution convolution = {x, L, Cin, rows, taps, stride, padding, dilation};
  if (taps > 1 && stride == 1 && taps * Cout <= COLUMNS) return few_outputs(convolution, w, to, threads);
  convolve(
      convolution, Cout, threads,
      [=](long column, int count, void* packed) { engine().pack_rows(w + column * K, K, count, int(K), packed); },
      [&](long row, int count, long column, int columns, const float* c) {
        for (int j = 0; j < columns; j += LANES)
          finish(to, c + j, count, column + j, std::min(columns - j, LANES), row * Cout + column + j, Cout);
      });
}

}  // namespace LEVEL
