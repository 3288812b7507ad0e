// acefast._cpu: the CPU's kernels of csrc/. Knows no torch: addresses travel as integers, sizes and strides in elements.
#include <pybind11/pybind11.h>

#include <string>

#include "engine.h"
#include "machine.h"

namespace py = pybind11;

#if BUILT >= 2
#define AT_LEVEL(op) at_level(portable::op, avx2::op, avx512::op)
#define LEVELS(declaration)          \
  namespace portable { declaration; } \
  namespace avx2 { declaration; }     \
  namespace avx512 { declaration; }
#elif BUILT >= 1
#define AT_LEVEL(op) at_level(portable::op, avx2::op, avx2::op)
#define LEVELS(declaration)          \
  namespace portable { declaration; } \
  namespace avx2 { declaration; }
#else
#define AT_LEVEL(op) portable::op
#define LEVELS(declaration) \
  namespace portable { declaration; }
#endif

LEVELS(void linear(const bf16* x, long rows, long K, long x_stride, const bf16* w, long w_stride, long N,
                   const bf16* bias, bf16* y, long y_stride, bool add, int threads))
LEVELS(void quantize_rows(const bf16* x, long R, long K, int8_t* q, float* scale, int threads))
LEVELS(void linear_int8(const int8_t* x, const float* x_scale, long R, long K, const int8_t* w, const float* w_scale,
                        long N, const float* bias, const float* gate, bf16* y, bool swiglu, bool add, int threads))
LEVELS(void linear_swiglu(const bf16* x, long rows, long K, long x_stride, const bf16* w, long w_stride, long I,
                          bf16* y, long y_stride, int threads))
LEVELS(void residual_norm(long B, long S, long H, const bf16* x, long x_song, long x_row, const bf16* y, long y_song,
                          long y_row, const float* gate, const bf16* weight, const float* scale, const float* shift,
                          float eps, bf16* sum, long sum_song, long sum_row, bf16* h, long h_song, long h_row,
                          int threads))

namespace {

using Address = uintptr_t;

const bf16* in(Address at) { return reinterpret_cast<const bf16*>(at); }
bf16* out(Address at) { return reinterpret_cast<bf16*>(at); }
int8_t* integers(Address at) { return reinterpret_cast<int8_t*>(at); }
float* floats(Address at) { return reinterpret_cast<float*>(at); }

Isa named(const std::string& name) {
  for (int i = 0; i < 5; i++)
    if (name == ISA_NAMES[i]) return Isa(i);
  throw py::value_error("isa must be portable, avx2, avx512, bf16 or amx, got " + name);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.def("supported", [] { return ISA_NAMES[supported()]; });
  m.def("isa", [] { return ISA_NAMES[isa()]; });
  m.def("limit_isa", [](const std::string& name) { limit_isa(named(name)); });
  m.def("engine", [] { return engine().name; });
  m.def("engine8", [] { return engine8().name; });

  const auto free = py::call_guard<py::gil_scoped_release>();
  m.def(
      "linear",
      [](Address x, long rows, long K, long x_stride, Address w, long w_stride, long N, Address bias, Address y,
         long y_stride, bool add, int threads) {
        AT_LEVEL(linear)(in(x), rows, K, x_stride, in(w), w_stride, N, in(bias), out(y), y_stride, add, threads);
      },
      free);
  m.def(
      "quantize_rows",
      [](Address x, long R, long K, Address q, Address scale, int threads) {
        AT_LEVEL(quantize_rows)(in(x), R, K, integers(q), floats(scale), threads);
      },
      free);
  m.def(
      "linear_int8",
      [](Address x, Address x_scale, long R, long K, Address w, Address w_scale, long N, Address bias, Address gate,
         Address y, bool swiglu, bool add, int threads) {
        AT_LEVEL(linear_int8)(integers(x), floats(x_scale), R, K, integers(w), floats(w_scale), N, floats(bias),
                              floats(gate), out(y), swiglu, add, threads);
      },
      free);
  m.def(
      "linear_swiglu",
      [](Address x, long rows, long K, long x_stride, Address w, long w_stride, long I, Address y, long y_stride,
         int threads) { AT_LEVEL(linear_swiglu)(in(x), rows, K, x_stride, in(w), w_stride, I, out(y), y_stride, threads); },
      free);
  m.def(
      "residual_norm",
      [](long B, long S, long H, Address x, long x_song, long x_row, Address y, long y_song, long y_row, Address gate,
         Address weight, Address scale, Address shift, float eps, Address sum, long sum_song, long sum_row, Address h,
         long h_song, long h_row, int threads) {
        AT_LEVEL(residual_norm)(B, S, H, in(x), x_song, x_row, in(y), y_song, y_row, floats(gate), in(weight),
                                floats(scale), floats(shift), eps, out(sum), sum_song, sum_row, out(h), h_song, h_row,
                                threads);
      },
      free);
}
