// acefast._cpu: the CPU's kernels of csrc/. Knows no torch: addresses travel as integers, sizes and strides in elements.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
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
LEVELS(void self_attention(const bf16* q, const long* q_strides, const bf16* k, const long* k_strides, const bf16* v,
                           const long* v_strides, const int64_t* lengths, bf16* out, const long* out_strides,
                           long batch, long rows, int heads, int kv_heads, int D, long window, bool pad_rows,
                           int threads))
LEVELS(void cross_attention(const bf16* q, const long* q_strides, const bf16* q_weight, const bf16* k,
                            const long* k_strides, const bf16* v, const long* v_strides, const int64_t* lengths,
                            bf16* out, const long* out_strides, long batch, long sets, long rows, long keys, int heads,
                            int kv_heads, int D, float eps, int threads))
LEVELS(void qk_norm_rope(const bf16* x, long x_stride, const bf16* q_weight, const bf16* k_weight, const float* cos,
                         const float* sin, long cos_stride, long sin_stride, bf16* y, long y_stride, long rows,
                         long positions, int heads, int kv_heads, int D, float eps, int threads))
LEVELS(void depthwise_glu(const bf16* x, long x_batch, long x_row, const bf16* weight, long tap, const bf16* bias,
                          const int64_t* lengths, bf16* out, long out_batch, long out_row, long batch, long rows,
                          long F, bool silu_input, int threads))

namespace {

using Address = uintptr_t;
using Strides = std::array<long, 3>;

const bf16* in(Address at) { return reinterpret_cast<const bf16*>(at); }
bf16* out(Address at) { return reinterpret_cast<bf16*>(at); }
const float* in_fp32(Address at) { return reinterpret_cast<const float*>(at); }
const int64_t* counts(Address at) { return reinterpret_cast<const int64_t*>(at); }

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
      "self_attention",
      [](Address q, Strides q_strides, Address k, Strides k_strides, Address v, Strides v_strides, Address lengths,
         Address o, Strides out_strides, long batch, long rows, int heads, int kv_heads, int D, long window,
         bool pad_rows, int threads) {
        AT_LEVEL(self_attention)
        (in(q), q_strides.data(), in(k), k_strides.data(), in(v), v_strides.data(), counts(lengths), out(o),
         out_strides.data(), batch, rows, heads, kv_heads, D, window, pad_rows, threads);
      },
      free);
  m.def(
      "cross_attention",
      [](Address q, Strides q_strides, Address q_weight, Address k, Strides k_strides, Address v, Strides v_strides,
         Address lengths, Address o, Strides out_strides, long batch, long sets, long rows, long keys, int heads,
         int kv_heads, int D, float eps, int threads) {
        AT_LEVEL(cross_attention)
        (in(q), q_strides.data(), in(q_weight), in(k), k_strides.data(), in(v), v_strides.data(), counts(lengths),
         out(o), out_strides.data(), batch, sets, rows, keys, heads, kv_heads, D, eps, threads);
      },
      free);
  m.def(
      "qk_norm_rope",
      [](Address x, long x_stride, Address q_weight, Address k_weight, Address cos, Address sin, long cos_stride,
         long sin_stride, Address y, long y_stride, long rows, long positions, int heads, int kv_heads, int D,
         float eps, int threads) {
        AT_LEVEL(qk_norm_rope)
        (in(x), x_stride, in(q_weight), in(k_weight), in_fp32(cos), in_fp32(sin), cos_stride, sin_stride, out(y),
         y_stride, rows, positions, heads, kv_heads, D, eps, threads);
      },
      free);
  m.def(
      "depthwise_glu",
      [](Address x, long x_batch, long x_row, Address weight, long tap, Address bias, Address lengths, Address y,
         long y_batch, long y_row, long batch, long rows, long F, bool silu_input, int threads) {
        AT_LEVEL(depthwise_glu)
        (in(x), x_batch, x_row, in(weight), tap, in(bias), counts(lengths), out(y), y_batch, y_row, batch, rows, F,
         silu_input, threads);
      },
      free);
}
