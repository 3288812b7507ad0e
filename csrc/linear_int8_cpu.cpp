// Products of 8-bit integers on a CPU, scaled back.
//
// Math     v[t, n] = x_scale[t] weight_scale[n] sum_k x[t, k] w[n, k] (+ bias[n])          sums exact, the rest fp32
//          y[t, n] = v, silu(v[t, n]) v[t, N + n] or y[t, n] + v (gate[n])                        rounded once
// Tiling   as csrc/linear_cpu.cpp; with SwiGLU a block of gates lies beside the block of what it gates
// Bytes    w once from memory, half of bf16's; x once for each group of blocks, from the last cache
// Bound    the engine's products: 2 T N K, at twice the rate of bf16 in VNNI and AMX
#include "cpu/product8.h"
#include "cpu/vector.h"

namespace LEVEL {

namespace {

inline f32 numbers(const int32_t* c) {
  i32 v;
  std::memcpy(&v, c, sizeof v);
  return __builtin_convertvector(v, f32);
}

}  // namespace

// x [R, K], w and y are contiguous. N: columns of y, a multiple of 16; with `swiglu` w has twice as many rows.
void linear_int8(const int8_t* x, const float* x_scale, long R, long K, const int8_t* w, const float* w_scale, long N,
                 const float* bias, const float* gate, bf16* y, bool swiglu, bool add, int threads) {
  const auto scaled = [=](const int32_t* c, long row, long n) {
    const f32 v = numbers(c) * x_scale[row] * load(w_scale + n);
    return bias ? v + load(bias + n) : v;
  };
  if (swiglu) {
    product8<2>(x, R, K, w, N * K, N, threads, [=](long row, int rows, long column, int columns, const int32_t* c) {
      for (int r = 0; r < rows; r++, c += COLUMNS)
        for (int j = 0; j < columns; j += LANES) {
          const f32 gates = scaled(c + j, row + r, column + j);
          store(y + (row + r) * N + column + j,
                silu(gates) * scaled(c + rows * COLUMNS + j, row + r, N + column + j));
        }
    });
    return;
  }
  product8<1>(x, R, K, w, 0, N, threads, [=](long row, int rows, long column, int columns, const int32_t* c) {
    for (int r = 0; r < rows; r++, c += COLUMNS)
      for (int j = 0; j < columns; j += LANES) {
        bf16* out = y + (row + r) * N + column + j;
        f32 v = scaled(c + j, row + r, column + j);
        if (gate) v *= load(gate + column + j);
        store(out, add ? v + load(out) : v);
      }
  });
}

}  // namespace LEVEL
