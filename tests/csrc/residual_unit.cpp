// csrc/residual_unit.cu on fibers, against the equation in fp64:
//
//   residual_unit ENTRY SONGS ROWS DILATION KEEP WAVE EAGER ORDER
//
// Exit status 1 and a line that says what is wrong: results, guards, or what the fibers have found.
#include <cstdio>
#include <map>
#include <random>

#include "device.h"
#include SOURCE
#include "memory.h"

constexpr int GUARD = 32, TAPS_ = 7;

template <typename T>
using Kernel = void (*)(const T*, const float*, const float*, const T*, const T*, const float*, const float*, const T*,
                        const T*, const float*, const float*, T*, T*, int, int, int);

struct Sizes {
  int C, rows, kb, stages;
};

double snake_exact(double x, double alpha, double inv_beta) { return x + inv_beta * sin(alpha * x) * sin(alpha * x); }

template <typename T>
void check(Kernel<T> kernel, Sizes s, double tolerance, int B, int L, int d, bool keep, bool wave, fibers::Options how) {
  const int C = s.C, song = (L + 2 * GUARD) * C;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  auto fill = [&](Memory<T>& m, float scale) {
    for (size_t i = 0; i < m.n; i++) m[i] = number<T>(normal(random) * scale);
  };
  Memory<T> x(size_t(B) * song), w1(TAPS_ * C * C), b1(C), w2(C * C), b2(C), y(x.n), waved(x.n);
  fill(w1, 1 / std::sqrt(7.0f * C)), fill(b1, 1), fill(w2, 1 / std::sqrt(float(C))), fill(b2, 1);
  for (size_t i = 0; i < x.n; i++) {
    const int row = i % song / C - GUARD;
    x[i] = number<T>(row >= 0 && row < L ? normal(random) : 0);
  }
  Memory<float> waves(6 * C);  // alpha and inv_beta of three snakes
  for (size_t i = 0; i < waves.n; i++) waves[i] = std::fabs(normal(random)) + (i / C % 2 ? 0 : 0.1f);
  auto of = [&](int i) { return waves.data + i * C; };

  const fibers::Index grid{unsigned((L + s.rows - 1) / s.rows), 1, unsigned(B)};
  const unsigned threads = s.rows / 64 * (C / 64) * 32;
  const size_t shared = size_t(s.stages * s.kb + s.rows + 6 * d) * C * 2;
  fibers::launch(grid, threads, shared, how, [&] {
    kernel(x.data, of(0), of(1), w1.data, b1.data, of(2), of(3), w2.data, b2.data, of(4), of(5),
           keep ? y.data : nullptr, wave ? waved.data : nullptr, L, d, GUARD);
  });

  Error errors[2];
  std::vector<double> activated(song), hidden(C);
  for (int b = 0; b < B; b++) {
    T* const from = x.data + size_t(b) * song;
    for (int i = 0; i < song; i++) {
      activated[i] = value(number<T>(snake_exact(value(from[i]), of(0)[i % C], of(1)[i % C])));
      const bool inside = i >= GUARD * C && i < (GUARD + L) * C;
      if (!inside && keep && y[size_t(b) * song + i].bits) fibers::fail("a guard of y is not zero");
      if (!inside && wave && waved[size_t(b) * song + i].bits) fibers::fail("a guard of waved is not zero");
    }
    for (int row = GUARD; row < GUARD + L; row++) {
      for (int c = 0; c < C; c++) {
        double sum = value(b1[c]);
        for (int tap = 0; tap < TAPS_; tap++)
          for (int k = 0; k < C; k++)
            sum += value(w1[(c * TAPS_ + tap) * C + k]) * activated[(row + (tap - 3) * d) * C + k];
        hidden[c] = value(number<T>(snake_exact(sum, of(2)[c], of(3)[c])));
      }
      for (int c = 0; c < C; c++) {
        double sum = value(from[row * C + c]) + value(b2[c]);
        for (int k = 0; k < C; k++) sum += value(w2[c * C + k]) * hidden[k];
        const double meant[2] = {sum, snake_exact(sum, of(4)[c], of(5)[c])};
        const size_t at = size_t(b) * song + row * C + c;
        const double got[2] = {keep ? value(y[at]) : meant[0], wave ? value(waved[at]) : meant[1]};
        for (int i = 0; i < 2; i++) errors[i].add(got[i], meant[i]);
      }
    }
  }
  for (const Error& error : errors) error.hold(tolerance);
}

int main(int count, char** words) {
  if (count != 9) return 2;
  const std::map<std::string, Sizes> sizes = {{"c128_r128", {128, 128, 64, 2}},
                                              {"c256_r128", {256, 128, 64, 2}},
                                              {"c256_r64", {256, 64, 32, 2}}};
  const std::map<std::string, Kernel<bf16>> of_bf16 = {{"c128_r128", residual_unit_c128_r128_bf16},
                                                       {"c256_r128", residual_unit_c256_r128_bf16},
                                                       {"c256_r64", residual_unit_c256_r64_bf16}};
  const std::map<std::string, Kernel<fp16>> of_fp16 = {{"c128_r128", residual_unit_c128_r128_fp16},
                                                       {"c256_r128", residual_unit_c256_r128_fp16},
                                                       {"c256_r64", residual_unit_c256_r64_fp16}};
  const std::string entry = words[1], name = entry.substr(0, entry.rfind('_')), type = entry.substr(name.size() + 1);
  int n[7];
  for (int i = 0; i < 7; i++) n[i] = atoi(words[2 + i]);
  const fibers::Options how{n[5] != 0, decltype(fibers::Options::order)(n[6])};
  return outcome([&] {
    if (type == "bf16")
      check<bf16>(of_bf16.at(name), sizes.at(name), 3e-3, n[0], n[1], n[2], n[3], n[4], how);
    else
      check<fp16>(of_fp16.at(name), sizes.at(name), 4e-4, n[0], n[1], n[2], n[3], n[4], how);
  });
}
