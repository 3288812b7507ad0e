// Linear layer on a CPU.
//
// Math     y[t, n] = sum_k x[t, k] w[n, k] (+ bias[n]), GELU of that where it is asked for (+ residual[t, n])
//                                                                                            fp32, rounded once
// Tiling   a thread takes a few blocks of 32 rows of w, packed unless they are panels, which fill half of its second
//          cache, and takes all rows of x past them
// Bytes    w once from memory; x once for each group of blocks, from the last cache
// Bound    the engine's products: 2 T N K; packing adds N K transposed numbers, 2 % at 375 rows of AVX-512 BF16;
//          GELU a tenth at K = 384 (measured, Zen 4)
#include "cpu/product.h"
#include "cpu/vector.h"

namespace LEVEL {

// bias and residual may be null; y may be residual.
void linear(const bf16* x, long rows, long K, long x_stride, const bf16* w, long w_stride, long N, const bf16* bias,
            bool with_gelu, const bf16* residual, long residual_stride, bf16* y, long y_stride, int threads) {
  product<1>({x, rows, K, x_stride}, {w}, w_stride, N, threads,
             [=](long row, int count, long column, int columns, const float* c) {
               for (int r = 0; r < count; r++, c += COLUMNS)
                 for (int j = 0; j < columns; j += LANES) {
                   const int n = columns - j < LANES ? columns - j : LANES;
                   const long at = column + j;
                   f32 v = load(c + j);
                   if (bias) v += load(bias + at, n);
                   if (with_gelu) v = gelu(v);
                   if (residual) v += load(residual + (row + r) * residual_stride + at, n);
                   store(y + (row + r) * y_stride + at, v, n);
                 }
             });
}

}  // namespace LEVEL
