// 1-D convolution of rows on a CPU.
//
// Math     y[t, o] = share (bias[o] + sum_k sum_c w[o, k, c] x[t stride + k dilation - padding, c] + residual[t, o])
//          + total[t, o], and what the next layer's snake or SiLU makes of it                        fp32, rounded once
// Tiling   csrc/cpu/convolution.h
// Bytes    w once from memory for each share of the rows; x once for each group of blocks, from the last cache
// Bound    the engine's products: 2 rows K Cin Cout, where Cout is no multiple of 32 those of the next one
#include "cpu/convolution.h"
#include "cpu/finish.h"

namespace LEVEL {

void conv1d(const bf16* x, long L, long Cin, const bf16* w, long Cout, int taps, int stride, int padding, int dilation,
            long rows, const Results& to, int threads) {
  const long K = taps * Cin;
  convolve(
      {x, L, Cin, rows, taps, stride, padding, dilation}, Cout, threads,
      [=](long column, int count, void* packed) { engine().pack_rows(w + column * K, K, count, int(K), packed); },
      [&](long row, int count, long column, int columns, const float* c) {
        for (int j = 0; j < columns; j += LANES)
          finish(to, c + j, count, column + j, std::min(columns - j, LANES), row * Cout + column + j, Cout);
      });
}

}  // namespace LEVEL
