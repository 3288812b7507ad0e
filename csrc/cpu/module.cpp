// acefast._cpu: the CPU's kernels of csrc/. Knows no torch: addresses travel as integers, sizes and strides in elements.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "engine.h"
#include "machine.h"
#include "parallel.h"
#include "results.h"

namespace py = pybind11;

#if BUILT >= 3
#define AT_LEVEL(op) at_level(portable::op, avx2::op, avx512::op, avx512_bf16::op)
#define LEVELS(declaration)          \
  namespace portable { declaration; } \
  namespace avx2 { declaration; }     \
  namespace avx512 { declaration; }   \
  namespace avx512_bf16 { declaration; }
#elif BUILT >= 2
#define AT_LEVEL(op) at_level(portable::op, avx2::op, avx512::op, avx512::op)
#define LEVELS(declaration)          \
  namespace portable { declaration; } \
  namespace avx2 { declaration; }     \
  namespace avx512 { declaration; }
#elif BUILT >= 1
#define AT_LEVEL(op) at_level(portable::op, avx2::op, avx2::op, avx2::op)
#define LEVELS(declaration)          \
  namespace portable { declaration; } \
  namespace avx2 { declaration; }
#else
#define AT_LEVEL(op) portable::op
#define LEVELS(declaration) \
  namespace portable { declaration; }
#endif

LEVELS(void linear(const bf16* x, long rows, long K, long x_stride, const bf16* w, long w_stride, long N,
                   const bf16* bias, bool with_gelu, const bf16* residual, long residual_stride, bf16* y, long y_stride,
                   int threads))
LEVELS(void quantize_rows(const bf16* x, long R, long K, int8_t* q, float* scale, int threads))
LEVELS(void linear_int8(const int8_t* x, const float* x_scale, long R, long K, const int8_t* w, const float* w_scale,
                        long N, const float* bias, const float* gate, bf16* y, bool swiglu, bool add, int threads))
LEVELS(void linear_swiglu(const bf16* x, long rows, long K, long x_stride, const bf16* gate, const bf16* up,
                          long w_stride, long I, bf16* y, long y_stride, int threads))
LEVELS(void residual_norm(long B, long S, long H, const bf16* x, long x_song, long x_row, const bf16* y, long y_song,
                          long y_row, const float* gate, const bf16* weight, const float* scale, const float* shift,
                          float eps, bf16* sum, long sum_song, long sum_row, bf16* h, long h_song, long h_row,
                          int threads))
LEVELS(void self_attention(const bf16* q, const long* q_strides, const bf16* k, const long* k_strides, const bf16* v,
                           const long* v_strides, const int64_t* lengths, bf16* out, const long* out_strides,
                           long batch, long rows, int heads, int kv_heads, int D, long before, long after,
                           bool pad_rows, int threads))
LEVELS(void cross_attention(const bf16* q, const long* q_strides, const bf16* q_weight, const bf16* k,
                            const long* k_strides, const bf16* v, const long* v_strides, const int64_t* lengths,
                            bf16* out, const long* out_strides, long batch, long sets, long rows, long keys, int heads,
                            int kv_heads, int D, float eps, int threads))
LEVELS(void qk_norm_rope(const bf16* x, long x_stride, const bf16* q_weight, const bf16* k_weight, const float* cos,
                         const float* sin, long cos_stride, long sin_stride, bf16* y, long y_stride, long rows,
                         long positions, int heads, int kv_heads, int D, float eps, int threads))
LEVELS(void snake(const bf16* x, long rows, long C, const float* alpha, const float* inv_beta, bf16* y, int threads))
LEVELS(void conv1d(const bf16* x, long L, long Cin, const bf16* w, long Cout, int taps, int stride, int padding,
                   int dilation, long rows, const Results& to, int threads))
LEVELS(void conv_transpose1d(const bf16* x, long L, long Cin, const bf16* w, int s, const Results& to, int threads))
LEVELS(void spectral_conv1d(const bf16* x, long songs, long L, long C, const float* alpha, const float* inv_beta,
                            const bf16* w, bool panels, long N, int taps, long dilation, const Results& to,
                            int threads))
LEVELS(void spectral_conv2d(const bf16* x, long songs, long T, long W, long C, const bf16* w, bool panels,
                            const Results& to, int threads))
LEVELS(void winograd2d(const bf16* x, long songs, long T, long W, const bf16* w, bool panels, long N,
                       const bf16* bias, bf16* y, int threads))
LEVELS(void rms_residual(long rows, long C, const bf16* h, long h_row, const bf16* weight, const bf16* bias,
                         const bf16* x, long x_row, bool relu, float eps, bf16* y, long y_row, int threads))
LEVELS(void depthwise_glu(const bf16* x, long x_batch, long x_row, const bf16* weight, long tap, const bf16* bias,
                          const int64_t* lengths, bf16* out, long out_batch, long out_row, long batch, long rows,
                          long F, bool silu_input, int threads))
LEVELS(void paired_rope(const bf16* x, const long* x_strides, const float* table, bf16* y, const long* y_strides,
                        long batch, long rows, int heads, int D, int threads))
LEVELS(void linear_attention(const bf16* qkv, long x_batch, long x_row, const float* table, const int64_t* lengths,
                             bf16* out, long y_batch, long y_row, long batch, long rows, int heads, int D, int threads))
LEVELS(void vit_linear_attention(const bf16* x, long x_batch, long x_row, bf16* out, long y_batch, long y_row, long batch,
                                 long places, int heads, int D, int threads))
LEVELS(void depthwise2d(const bf16* x, long batch, long H, long W, long C, int K, const bf16* weight, const bf16* bias,
                        bool silu_input, bool gate, const bf16* mix, bf16* y, int threads))
LEVELS(void depthwise_norm(const bf16* x, long x_song, long x_row, long batch, long rows, long C, int K,
                           const bf16* taps, const bf16* tap_bias, const bf16* weight, const bf16* bias, float eps,
                           bf16* y, long y_song, long y_row, int threads))

namespace {

using Address = uintptr_t;
using Strides = std::array<long, 3>;

const bf16* in(Address at) { return reinterpret_cast<const bf16*>(at); }
bf16* out(Address at) { return reinterpret_cast<bf16*>(at); }
int8_t* integers(Address at) { return reinterpret_cast<int8_t*>(at); }
float* floats(Address at) { return reinterpret_cast<float*>(at); }
const int64_t* counts(Address at) { return reinterpret_cast<const int64_t*>(at); }

// y, waved, width, bias, residual, total, alpha, inv_beta
using Addresses = std::array<Address, 8>;
Results results(const Addresses& to, float share) {
  return {out(to[0]), out(to[1]), long(to[2]), in(to[3]), in(to[4]), in(to[5]), share, floats(to[6]), floats(to[7])};
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
  m.def(  // acefast.panels: of weights whose rows are a multiple of 32, as are their numbers
      "to_panels",
      [](Address w, long rows, long K, Address panels, int threads) {
        portable::in_parallel(rows / COLUMNS, threads, [=](long i) {
          const bf16* from = in(w) + i * COLUMNS * K;
          bf16* to = out(panels) + i * COLUMNS * K;
          if (!engine().pack_panel) return engine().pack_rows(from, K, COLUMNS, int(K), to);
          for (long k = 0; k < K; k++)
            for (long j = 0; j < COLUMNS; j++) to[(k / 2 * COLUMNS + j) * 2 + k % 2] = from[j * K + k];
        });
      },
      free);
  m.def(
      "linear",
      [](Address x, long rows, long K, long x_stride, Address w, long w_stride, long N, Address bias, bool gelu,
         Address residual, long residual_stride, Address y, long y_stride, int threads) {
        AT_LEVEL(linear)(in(x), rows, K, x_stride, in(w), w_stride, N, in(bias), gelu, in(residual), residual_stride,
                         out(y), y_stride, threads);
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
      [](Address x, long rows, long K, long x_stride, Address gate, Address up, long w_stride, long I, Address y,
         long y_stride, int threads) {
        AT_LEVEL(linear_swiglu)
        (in(x), rows, K, x_stride, in(gate), in(up), w_stride, I, out(y), y_stride, threads);
      },
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
  m.def(
      "self_attention",
      [](Address q, Strides q_strides, Address k, Strides k_strides, Address v, Strides v_strides, Address lengths,
         Address o, Strides out_strides, long batch, long rows, int heads, int kv_heads, int D, long before,
         long after, bool pad_rows, int threads) {
        AT_LEVEL(self_attention)
        (in(q), q_strides.data(), in(k), k_strides.data(), in(v), v_strides.data(), counts(lengths), out(o),
         out_strides.data(), batch, rows, heads, kv_heads, D, before, after, pad_rows, threads);
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
        (in(x), x_stride, in(q_weight), in(k_weight), floats(cos), floats(sin), cos_stride, sin_stride, out(y),
         y_stride, rows, positions, heads, kv_heads, D, eps, threads);
      },
      free);
  m.def(
      "snake",
      [](Address x, long rows, long C, Address alpha, Address inv_beta, Address y, int threads) {
        AT_LEVEL(snake)(in(x), rows, C, floats(alpha), floats(inv_beta), out(y), threads);
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
      "spectral_conv1d",
      [](Address x, long songs, long L, long C, Address alpha, Address inv_beta, Address w, bool panels, long N,
         int taps, long dilation, const Addresses& to, float share, int threads) {
        AT_LEVEL(spectral_conv1d)(in(x), songs, L, C, floats(alpha), floats(inv_beta), in(w), panels, N, taps, dilation,
                                  results(to, share), threads);
      },
      free);
  m.def(
      "spectral_conv2d",
      [](Address x, long songs, long T, long W, long C, Address w, bool panels, const Addresses& to, int threads) {
        AT_LEVEL(spectral_conv2d)(in(x), songs, T, W, C, in(w), panels, results(to, 1), threads);
      },
      free);
  m.def(
      "winograd2d",
      [](Address x, long songs, long T, long W, Address w, bool panels, long N, Address bias, Address y,
         int threads) {
        AT_LEVEL(winograd2d)(in(x), songs, T, W, in(w), panels, N, in(bias), out(y), threads);
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
  m.def(
      "depthwise_glu",
      [](Address x, long x_batch, long x_row, Address weight, long tap, Address bias, Address lengths, Address y,
         long y_batch, long y_row, long batch, long rows, long F, bool silu_input, int threads) {
        AT_LEVEL(depthwise_glu)
        (in(x), x_batch, x_row, in(weight), tap, in(bias), counts(lengths), out(y), y_batch, y_row, batch, rows, F,
         silu_input, threads);
      },
      free);
  m.def(
      "paired_rope",
      [](Address x, Strides x_strides, Address table, Address y, Strides y_strides, long batch, long rows, int heads,
         int D, int threads) {
        AT_LEVEL(paired_rope)
        (in(x), x_strides.data(), floats(table), out(y), y_strides.data(), batch, rows, heads, D, threads);
      },
      free);
  m.def(
      "linear_attention",
      [](Address qkv, long x_batch, long x_row, Address table, Address lengths, Address y, long y_batch, long y_row,
         long batch, long rows, int heads, int D, int threads) {
        AT_LEVEL(linear_attention)
        (in(qkv), x_batch, x_row, floats(table), counts(lengths), out(y), y_batch, y_row, batch, rows, heads, D, threads);
      },
      free);
  m.def(
      "vit_linear_attention",
      [](Address x, long x_batch, long x_row, Address y, long y_batch, long y_row, long batch, long places, int heads,
         int D, int threads) {
        AT_LEVEL(vit_linear_attention)
        (in(x), x_batch, x_row, out(y), y_batch, y_row, batch, places, heads, D, threads);
      },
      free);
  m.def(
      "depthwise2d",
      [](Address x, long batch, long H, long W, long C, int K, Address weight, Address bias, bool silu_input, bool gate,
         Address mix, Address y, int threads) {
        AT_LEVEL(depthwise2d)
        (in(x), batch, H, W, C, K, in(weight), in(bias), silu_input, gate, in(mix), out(y), threads);
      },
      free);
  m.def(
      "depthwise_norm",
      [](Address x, long x_song, long x_row, long batch, long rows, long C, int K, Address taps, Address tap_bias,
         Address weight, Address bias, float eps, Address y, long y_song, long y_row, int threads) {
        AT_LEVEL(depthwise_norm)(in(x), x_song, x_row, batch, rows, C, K, in(taps), in(tap_bias), in(weight), in(bias),
                                 eps, out(y), y_song, y_row, threads);
      },
      free);
}
