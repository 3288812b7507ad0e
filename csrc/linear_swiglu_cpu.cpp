// A feed-forward block's first half on a CPU: two linear layers and SwiGLU of their results.
//
// Math     y[t, n] = silu(sum_k x[t, k] w[n, k]) * sum_k x[t, k] w[I + n, k], silu(z) = z / (1 + exp(-z))
//                                                                                            fp32, rounded once
// Tiling   as linear_cpu.cpp, of both halves' blocks side by side: a tile's two products meet in the first cache
// Bytes    w once from memory; x once for each group of blocks, from the last cache; the products never
// Bound    the engine's products: 4 T I K
#include "cpu/product.h"
#include "cpu/vector.h"

namespace LEVEL {

void linear_swiglu(const bf16* x, long rows, long K, long x_stride, const bf16* w, long w_stride, long I, bf16* y,
                   long y_stride, int threads) {
  product<2>({x, rows, K, x_stride}, w, w_stride, I * w_stride, I, threads,
             [=](long row, int count, long column, int columns, const float* gate) {
               const float* up = gate + count * COLUMNS;
               for (int r = 0; r < count; r++, gate += COLUMNS, up += COLUMNS)
                 for (int j = 0; j < columns; j += LANES)
                   store(y + (row + r) * y_stride + column + j, silu(load(gate + j)) * load(up + j),
                         columns - j < LANES ? columns - j : LANES);
             });
}

}  // namespace LEVEL
