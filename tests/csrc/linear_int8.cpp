// csrc/linear_int8.cu on fibers, against the equation in fp64 of exact sums:
//
//   linear_int8 ENTRY ROWS K OUTPUTS FORM EAGER ORDER        FORM: 0 plain, 1 bias, 2 SwiGLU, 3 in place with a gate
//
// Exit status 1 and a line that says what is wrong: results, or what the fibers have found.
#include <cstdio>
#include <random>

#include "device.h"
#include SOURCE
#include "memory.h"

enum Form { PLAIN, BIAS, SWIGLU, ADD };

template <typename T>
using Kernel = void (*)(const int8*, const float*, const int8*, const float*, const float*, const float*, const int*,
                        T*, i64, int, int, int, int, int);

template <typename T>
void check(Kernel<T> kernel, int M, int N, int stages, double tolerance, int R, int K, int O, Form form,
           fibers::Options how) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  auto fill = [&](Memory<float>& m) {
    for (size_t i = 0; i < m.n; i++) m[i] = normal(random);
  };
  auto fill_bytes = [&](Memory<int8>& m) {
    for (size_t i = 0; i < m.n; i++) m[i].bits = int(random() % 255) - 127;
  };
  const int width = form == SWIGLU ? O / 2 : O;
  Memory<int8> x(size_t(R) * K), weight(size_t(O) * K);
  Memory<float> x_scale(R), weight_scale(O), bias(O), gate(3 * O);
  Memory<int> step(1);
  Memory<T> out(size_t(R) * width);
  fill_bytes(x), fill_bytes(weight), fill(x_scale), fill(weight_scale), fill(bias), fill(gate);
  for (size_t i = 0; i < x_scale.n; i++) x_scale[i] /= 127;
  for (size_t i = 0; i < weight_scale.n; i++) weight_scale[i] /= 127;
  step[0] = 1;
  std::vector<double> before(out.n);
  for (size_t i = 0; form == ADD && i < out.n; i++) out[i] = number<T>(normal(random)), before[i] = value(out[i]);

  const fibers::Index grid{unsigned((R + M - 1) / M * (O / N)), 1, 1};
  fibers::launch(grid, M / 64 * (N / 64) * 32, size_t(M + N) * 128 * stages, how, [&] {
    kernel(x.data, x_scale.data, weight.data, weight_scale.data, form == PLAIN ? nullptr : bias.data,
           form == ADD ? gate.data : nullptr, form == ADD ? step.data : nullptr, out.data, O, R, K, O, form == SWIGLU,
           form == ADD);
  });

  Error error;
  auto y = [&](int r, int n) {
    i64 sum = 0;
    for (int k = 0; k < K; k++) sum += x[size_t(r) * K + k].bits * weight[size_t(n) * K + k].bits;
    return double(sum) * x_scale[r] * weight_scale[n] + (form == PLAIN ? 0 : bias[n]);
  };
  for (int r = 0; r < R; r++)
    for (int n = 0; n < width; n++) {
      double meant = y(r, n);
      if (form == SWIGLU) meant = meant / (1 + std::exp(-meant)) * y(r, width + n);
      if (form == ADD) meant = before[size_t(r) * width + n] + gate[O + n] * meant;
      const double got = value(out[size_t(r) * width + n]);
      error.add(got, meant);
    }
  error.hold(tolerance);
}

int main(int count, char** words) {
  if (count != 8) return 2;
  const std::string entry = words[1];
  auto number_of = [&](int i) { return atoi(words[i]); };
  const int R = number_of(2), K = number_of(3), O = number_of(4);
  const Form form = Form(number_of(5));
  fibers::Options how;
  how.eager = number_of(6), how.order = decltype(how.order)(number_of(7));
  return outcome([&] {
    if (entry == "m128_n256_bf16")
      check<bf16>(linear_int8_m128_n256_bf16, 128, 256, 3, 2.5e-3, R, K, O, form, how);
    else if (entry == "m128_n256_fp16")
      check<fp16>(linear_int8_m128_n256_fp16, 128, 256, 3, 4e-4, R, K, O, form, how);
    else if (entry == "m128_n128_bf16")
      check<bf16>(linear_int8_m128_n128_bf16, 128, 128, 2, 2.5e-3, R, K, O, form, how);
    else if (entry == "m128_n128_fp16")
      check<fp16>(linear_int8_m128_n128_fp16, 128, 128, 2, 4e-4, R, K, O, form, how);
    else
      fibers::fail("there is no " + entry);
  });
}
