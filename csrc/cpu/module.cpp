// acefast._cpu: the CPU's kernels of csrc/. Knows no torch: addresses travel as integers, sizes and strides in elements.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "engine.h"
#include "machine.h"
#include "results.h"

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
LEVELS(void snake(const bf16* x, long rows, long C, const float* alpha, const float* inv_beta, bf16* y, int threads))
LEVELS(void conv1d(const bf16* x, long L, long Cin, const bf16* w, long Cout, int taps, int stride, int padding,
                   int dilation, long rows, const Results& to, int threads))
LEVELS(void conv_transpose1d(const bf16* x, long L, long Cin, const bf16* w, int s, const Results& to, int threads))
LEVELS(void residual_unit(const bf16* x, const bf16* activated, long songs, long L, long C, const float* alpha1,
                          const float* inv_beta1, const bf16* w1, const bf16* b1, const float* alpha2,
                          const float* inv_beta2, const bf16* w2, int dilation, const Results& to, int threads))

namespace {

using Address = uintptr_t;

const bf16* in(Address at) { return reinterpret_cast<const bf16*>(at); }
bf16* out(Address at) { return reinterpret_cast<bf16*>(at); }
const float* fp32(Address at) { return reinterpret_cast<const float*>(at); }

// y, waved, width, bias, residual, total, alpha, inv_beta
using Addresses = std::array<Address, 8>;
Results results(const Addresses& to, float share) {
  return {out(to[0]), out(to[1]), long(to[2]), in(to[3]), in(to[4]), in(to[5]), share, fp32(to[6]), fp32(to[7])};
}

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
      "snake",
      [](Address x, long rows, long C, Address alpha, Address inv_beta, Address y, int threads) {
        AT_LEVEL(snake)(in(x), rows, C, fp32(alpha), fp32(inv_beta), out(y), threads);
      },
      free);
  m.def(
      "conv1d",
      [](Address x, long L, long Cin, Address w, long Cout, int taps, int stride, int padding, int dilation, long rows,
         const Addresses& to, float share, int threads) {
        AT_LEVEL(conv1d)(in(x), L, Cin, in(w), Cout, taps, stride, padding, dilation, rows, results(to, share), threads);
      },
      free);
  m.def(
      "conv_transpose1d",
      [](Address x, long L, long Cin, Address w, int stride, const Addresses& to, int threads) {
        AT_LEVEL(conv_transpose1d)(in(x), L, Cin, in(w), stride, results(to, 1), threads);
      },
      free);
  m.def(
      "residual_unit",
      [](Address x, Address activated, long songs, long L, long C, const std::array<Address, 7>& weights, int dilation,
         const Addresses& to, int threads) {
        const auto& [alpha1, inv_beta1, w1, b1, alpha2, inv_beta2, w2] = weights;
        AT_LEVEL(residual_unit)(in(x), in(activated), songs, L, C, fp32(alpha1), fp32(inv_beta1), in(w1), in(b1),
                                fp32(alpha2), fp32(inv_beta2), in(w2), dilation, results(to, 1), threads);
      },
      free);
}
