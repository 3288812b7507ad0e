// csrc/residual_norm.cu on fibers, against the equation in fp64:
//
//   residual_norm ENTRY SONGS ROWS IN_PLACE ORDER
//
// Exit status 1 and a line that says what is wrong: results, or what the fibers and the sanitizers have found.
#include <cstdio>
#include <map>
#include <random>

#include "device.h"
#include SOURCE
#include "memory.h"

template <>
float value(float v) {
  return v;
}
template <>
float number<float>(float v) {
  return v;
}

template <typename X, typename T>
using Kernel = void (*)(const X*, const T*, const T*, const float*, const float*, const float*, const int*, X*, T*, int,
                        i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, float);

template <typename X, typename T>
void check(Kernel<X, T> kernel, int B, int S, int H, bool in_place, fibers::Options how) {
  constexpr double ONE_ROUNDING = sizeof(X) == 4 ? 1e-6 : 4e-3, TOLERANCE = 4e-3;
  constexpr int STEPS = 3, STEP = 2;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  Memory<X> x(B * S * H), kept(x.n), other(in_place ? 0 : x.n);
  Memory<T> y(x.n), weight(H), h(x.n);
  Memory<float> table(STEPS * 3 * H);
  Memory<int> step(1);
  step[0] = STEP;
  for (size_t i = 0; i < x.n; i++) x[i] = kept[i] = number<X>(normal(random)), y[i] = number<T>(normal(random));
  for (int c = 0; c < H; c++) weight[c] = number<T>(normal(random));
  for (size_t i = 0; i < table.n; i++) table[i] = normal(random);
  X* const stream = in_place ? x.data : other.data;

  const fibers::Index grid{unsigned((S + ROWS - 1) / ROWS), unsigned(B), 1};
  const i64 song = i64(S) * H, row = 3 * H;
  fibers::launch(grid, 32 * ROWS, ROWS * ROWS * 4, how, [&] {
    kernel(x.data, y.data, weight.data, table.data, table.data + H, table.data + 2 * H, step.data, stream, h.data, S,
           song, H, song, H, song, H, song, H, row, row, row, 1e-6f);
  });

  const float *gate = table.data + STEP * row, *scale = gate + H, *shift = scale + H;
  double off[2] = {}, size[2] = {};
  for (int r = 0; r < B * S; r++) {
    double squares = 0;
    for (int c = 0; c < H; c++) squares += std::pow(value(stream[r * H + c]), 2);
    for (int c = 0; c < H; c++) {
      const int at = r * H + c;
      const double sum = value(kept[at]) + double(gate[c]) * value(y[at]);
      const double norm = value(stream[at]) / std::sqrt(squares / H + 1e-6) * value(weight[c]) * (1.0 + scale[c]) + shift[c];
      off[0] += std::pow(value(stream[at]) - sum, 2), size[0] += sum * sum;
      off[1] += std::pow(value(h[at]) - norm, 2), size[1] += norm * norm;
    }
  }
  const double most[2] = {ONE_ROUNDING, TOLERANCE};
  for (int i = 0; i < 2; i++) {
    const double error = std::sqrt(off[i] / size[i]);
    if (!(error <= most[i])) fibers::fail("relative L2 of result " + std::to_string(i) + " is " + std::to_string(error));
  }
}

int main(int count, char** words) {
  if (count != 6) return 2;
  const std::string entry = words[1];
  int n[4];
  for (int i = 0; i < 4; i++) n[i] = atoi(words[2 + i]);
  const fibers::Options how{false, decltype(fibers::Options::order)(n[3])};
  auto run = [&](auto kernel, int H) { check(kernel, n[0], n[1], H, n[2], how); };
  try {
    if (entry == "h2048_bf16")
      run(residual_norm_h2048_bf16, 2048);
    else if (entry == "h2560_bf16")
      run(residual_norm_h2560_bf16, 2560);
    else if (entry == "h2560_fp32_fp16")
      run(residual_norm_h2560_fp32_fp16, 2560);
    else
      return 2;
  } catch (const std::exception& fault) {
    printf("%s\n", fault.what());
    return 1;
  }
  return 0;
}
