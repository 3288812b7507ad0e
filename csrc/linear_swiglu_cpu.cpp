// A feed-forward block's first half on a CPU: two linear layers and SwiGLU of their results.
//
// Math     y[t, n] = silu(sum_k x[t, k] gate[n, k]) * sum_k x[t, k] up[n, k], silu(z) = z / (1 + exp(-z))
//                                                                                            fp32, rounded once
// Tiling   as linear_cpu.cpp, of both halves' blocks side by side: a tile's two products meet in the first cache
// Bytes    gate and up once from memory; x once for each group of blocks, from the last cache; the products never
// Bound    the engine's products: 4 T I K
#include "cpu/product.h"
#include "cpu/vector.h"

namespace LEVEL {

void linear_swiglu(const bf16* x, long rows, long K, long x_stride, const bf16* gate, const bf16* up,
                   long w_stride, long I, bf16* y, long y_stride, int threads) {
  product<2>({x, rows, K, x_stride}, {gate, up}, w_stride, I, threads,
             [=](long row, int count, long column, int columns, const float* g) {
               const float* u = g + count * COLUMNS;
               for (int r = 0; r < count; r++, g += COLUMNS, u += COLUMNS)
                 for (int j = 0; j < columns; j += LANES)
                   store(y + (row + r) * y_stride + column + j, silu(load(g + j)) * load(u + j),
                         columns - j < LANES ? columns - j : LANES);
             });
}

}  // namespace LEVEL
