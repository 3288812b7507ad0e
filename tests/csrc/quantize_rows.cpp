// csrc/quantize_rows.cu on fibers, against its equation:
//
//   quantize_rows ENTRY ROWS K ORDER
//
// Exit status 1 and a line that says what is wrong: results, or what the fibers have found.
#include <cstdio>
#include <random>

#include "device.h"
#include SOURCE
#include "memory.h"

float of(float v) { return v; }
template <typename T>
float of(T v) {
  return value(v);
}
template <typename T>
T to(float v) {
  if constexpr (sizeof(T) == 4)
    return v;
  else
    return number<T>(v);
}

template <typename T>
void check(void (*kernel)(const T*, int8*, float*, int), int R, int K, fibers::Options how) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  Memory<T> x(size_t(R) * K);
  Memory<int8> q(x.n);
  Memory<float> scale(R);
  for (size_t i = 0; i < x.n; i++) x[i] = to<T>(normal(random));
  const int warps = (K + 1023) / 1024;
  fibers::launch({unsigned(R), 1, 1}, 32 * warps, 4 * warps, how, [&] { kernel(x.data, q.data, scale.data, K); });
  for (int r = 0; r < R; r++) {
    float most = 0;
    for (int k = 0; k < K; k++) most = std::max(most, std::fabs(of(x[r * K + k])));
    if (scale[r] != most * (1 / 127.0f)) fibers::fail("scale of row " + std::to_string(r));
    for (int k = 0; k < K; k++)
      if (q[r * K + k].bits != int(std::rint(of(x[r * K + k]) * (1 / scale[r])))) fibers::fail("a rounded number");
  }
}

int main(int count, char** words) {
  if (count != 5) return 2;
  const std::string entry = words[1];
  const int R = atoi(words[2]), K = atoi(words[3]);
  fibers::Options how;
  how.order = decltype(how.order)(atoi(words[4]));
  return outcome([&] {
    if (entry == "bf16") check<bf16>(quantize_rows_bf16, R, K, how);
    if (entry == "fp16") check<fp16>(quantize_rows_fp16, R, K, how);
    if (entry == "fp32") check<float>(quantize_rows_fp32, R, K, how);
  });
}
