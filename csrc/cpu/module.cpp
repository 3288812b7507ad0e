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
LEVELS(void linear_swiglu(const bf16* x, long rows, long K, long x_stride, const bf16* w, long w_stride, long I,
                          bf16* y, long y_stride, int threads))
LEVELS(void residual_norm(long B, long S, long H, const bf16* x, long x_song, long x_row, const bf16* y, long y_song,
                          long y_row, const float* gate, const bf16* weight, const float* scale, const float* shift,
                          float eps, bf16* sum, long sum_song, long sum_row, bf16* h, long h_song, long h_row,
                          int threads))
LEVELS(void rms_residual(long rows, long C, const bf16* h, long h_row, const bf16* weight, const bf16* bias,
                         const bf16* x, long x_row, bool relu, float eps, bf16* y, long y_row, int threads))

namespace {

using Address = uintptr_t;

const bf16* in(Address at) { return reinterpret_cast<const bf16*>(at); }
const float* in32(Address at) { return reinterpret_cast<const float*>(at); }
bf16* out(Address at) { return reinterpret_cast<bf16*>(at); }

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
      "linear_swiglu",
      [](Address x, long rows, long K, long x_stride, Address w, long w_stride, long I, Address y, long y_stride,
         int threads) {
        AT_LEVEL(linear_swiglu)(in(x), rows, K, x_stride, in(w), w_stride, I, out(y), y_stride, threads);
      },
      free);
  m.def(
      "residual_norm",
      [](long B, long S, long H, Address x, long x_song, long x_row, Address y, long y_song, long y_row, Address gate,
         Address weight, Address scale, Address shift, float eps, Address sum, long sum_song, long sum_row, Address h,
         long h_song, long h_row, int threads) {
        AT_LEVEL(residual_norm)(B, S, H, in(x), x_song, x_row, in(y), y_song, y_row, in32(gate), in(weight),
                                in32(scale), in32(shift), eps, out(sum), sum_song, sum_row, out(h), h_song, h_row,
                                threads);
      },
      free);
  m.def(
      "rms_residual",
      [](long rows, long C, Address h, long h_row, Address weight, Address bias, Address x, long x_row, bool relu,
         float eps, Address y, long y_row, int threads) {
        AT_LEVEL(rms_residual)(rows, C, in(h), h_row, in(weight), in(bias), in(x), x_row, relu, eps, out(y), y_row,
                               threads);
      },
      free);
}
