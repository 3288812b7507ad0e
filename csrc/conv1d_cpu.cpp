// 1-D convolution of rows on a CPU.
//
// Math     y[t, o] = share (bias[o] + sum_k sum_c w[o, k, c] x[t stride + k dilation - padding, c] + residual[t, o])
//          + total[t, o], and what the next layer's snake or SiLU makes of it                        fp32, rounded once
// Tiling   a product whose rows have K taps; a thread packs a few blocks of 32 outputs, to half of its second cache, and
//          takes all rows past them
// Bytes    w once from memory; x copied between zeros once, and read once for each group of blocks, from the last cache
// Bound    the engine's products: 2 rows K Cin Cout, where Cout is no multiple of 32 those of the next one
#include "cpu/finish.h"
#include "cpu/padded.h"
#include "cpu/product.h"

namespace LEVEL {

void conv1d(const bf16* x, long L, long Cin, const bf16* w, long Cout, int taps, int stride, int padding, int dilation,
            long rows, const Results& to, int threads) {
  static thread_local Scratch scratch;
  const long apart = Cin + COLUMNS;
  const bf16* copy = padded(x, L, Cin, padding, apart, scratch, threads);
  product<1>({copy, rows, Cin, stride * apart, dilation * apart, taps}, w, taps * Cin, 0, Cout, threads,
             [&](long row, int count, long column, int columns, const float* c) {
               finish_rows(to, row, count, column, columns, c);
             });
}

}  // namespace LEVEL
