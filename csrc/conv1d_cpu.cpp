// 1-D convolution of rows on a CPU.
//
// Math     y[t, o] = share (bias[o] + sum_k sum_c w[o, k, c] x[t stride + k dilation - padding, c] + residual[t, o])
//          + total[t, o], and what the next layer's snake or SiLU makes of it                        fp32, rounded once
// Tiling   csrc/cpu/convolution.h; at stride 1, where Cout is a divisor of 32, several rows of y are a tile's 32 columns
// Bytes    w once from memory for each share of the rows; x once for each group of blocks, from the last cache
// Bound    the engine's products: 2 rows K Cin Cout, where Cout is no multiple of 32 those of the next one; of a divisor
//          K + 32 / Cout - 1 taps of 32 in place of K of Cout, for 32 / Cout rows; of few taps and channels the results
#include "cpu/convolution.h"
#include "cpu/finish.h"

namespace LEVEL {

void conv1d(const bf16* x, long L, long Cin, const bf16* w, long Cout, int taps, int stride, int padding, int dilation,
            long rows, const Results& to, int threads) {
  const long K = taps * Cin;
  const Convolution convolution = {x, L, Cin, rows, taps, stride, padding, dilation};
  if (stride == 1 && Cout < COLUMNS && COLUMNS % Cout == 0) {
    const Repeated repeated(to);
    return convolve_narrow(
        convolution, Cout, threads, [=](long o, bf16* into) { std::memcpy(into, w + o * K, K * sizeof(bf16)); },
        [&](long row, long count, const float* c) { finish_rows(repeated, c, count * Cout, row * Cout); });
  }
  convolve(
      convolution, Cout, threads,
      [=](long column, int count, void* packed) { engine().pack_rows(w + column * K, K, count, int(K), packed); },
      [&](long row, int count, long column, int columns, const float* c) {
        finish(to, c, count, column, columns, row * Cout + column, Cout);
      });
}

}  // namespace LEVEL
