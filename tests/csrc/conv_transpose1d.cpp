// csrc/conv_transpose1d.cu on fibers, against the equation in fp64:
//
//   conv_transpose1d ENTRY SONGS ROWS CIN COUT STRIDE RESULTS EAGER ORDER
//
// ROWS are x's; RESULTS: 1 y, 2 its snake, 3 both.
// Exit status 1 and a line that says what is wrong: results, guards, or what the fibers have found.
#include <cstdio>
#include <map>
#include <random>

#include "device.h"
#include SOURCE
#include "memory.h"

constexpr int GUARD = 32;

template <typename T>
using Kernel = void (*)(const T*, const T*, const T*, const float*, const float*, T*, T*, int, int, int, int, int);

struct Tile {
  int n, k, stages;
};

double snake_exact(double x, double alpha, double inv_beta) { return x + inv_beta * sin(alpha * x) * sin(alpha * x); }

template <typename T>
void check(Kernel<T> kernel, Tile tile, double tolerance, const int* size, fibers::Options how) {
  const int B = size[0], L = size[1], Cin = size[2], Cout = size[3], s = size[4], R = L * s, width = s * Cout;
  const bool keep = size[5] & 1, wave = size[5] & 2;
  const int from_song = (L + 2 * GUARD) * Cin, song = (R + 2 * GUARD) * Cout;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  Memory<T> x(size_t(B) * from_song), weight(size_t(2) * Cin * width), bias(Cout), y(size_t(B) * song), waved(y.n);
  for (size_t i = 0; i < x.n; i++) {
    const int row = int(i / Cin % (L + 2 * GUARD)) - GUARD;
    x[i] = number<T>(row >= 0 && row < L ? normal(random) : 0);
  }
  for (size_t i = 0; i < weight.n; i++) weight[i] = number<T>(normal(random) / std::sqrt(float(2 * Cin)));
  Memory<float> alpha(Cout), inv_beta(Cout);
  for (int i = 0; i < Cout; i++) {
    bias[i] = number<T>(normal(random));
    alpha[i] = std::fabs(normal(random)) + 0.1f, inv_beta[i] = std::fabs(normal(random));
  }

  const fibers::Index grid{unsigned((L + 127) / 128 * (width / tile.n)), 1, unsigned(B)};
  fibers::launch(grid, tile.n, size_t(128 + tile.n) * tile.k * 2 * tile.stages, how, [&] {
    kernel(x.data, weight.data, bias.data, alpha.data, inv_beta.data, keep ? y.data : nullptr,
           wave ? waved.data : nullptr, L, Cin, Cout, s, GUARD);
  });

  Error errors[2];
  for (size_t at = 0; at < y.n; at++) {
    const int b = at / song, row = int(at % song / Cout) - GUARD, c = at % Cout;
    if (row < 0 || row >= R) {
      if (keep && y[at].bits) fibers::fail("a guard of y is not zero");
      if (wave && waved[at].bits) fibers::fail("a guard of waved is not zero");
      continue;
    }
    const int t = (row + s / 2) / s, j = (row + s / 2) % s;  // t up to L
    double sum = value(bias[c]);
    for (int tap = 0; tap < 2; tap++)
      for (int k = 0; k < Cin; k++)
        sum += value(weight[size_t(tap * Cin + k) * width + j * Cout + c]) *
               value(x[size_t(b) * from_song + (t - tap + GUARD) * Cin + k]);
    const double meant[2] = {sum, snake_exact(sum, alpha[c], inv_beta[c])};
    const double got[2] = {keep ? value(y[at]) : meant[0], wave ? value(waved[at]) : meant[1]};
    for (int i = 0; i < 2; i++) errors[i].add(got[i], meant[i]);
  }
  for (const Error& error : errors) error.hold(tolerance);
}

int main(int count, char** words) {
  if (count != 10) return 2;
  const std::map<std::string, Tile> tiles = {
      {"n256_k64", {256, 64, 3}}, {"n128_k64", {128, 64, 2}}, {"n128_k32", {128, 32, 3}}};
  const std::map<std::string, Kernel<bf16>> of_bf16 = {{"n256_k64", conv_transpose1d_n256_k64_bf16},
                                                       {"n128_k64", conv_transpose1d_n128_k64_bf16},
                                                       {"n128_k32", conv_transpose1d_n128_k32_bf16}};
  const std::map<std::string, Kernel<fp16>> of_fp16 = {{"n256_k64", conv_transpose1d_n256_k64_fp16},
                                                       {"n128_k64", conv_transpose1d_n128_k64_fp16},
                                                       {"n128_k32", conv_transpose1d_n128_k32_fp16}};
  const std::string entry = words[1], name = entry.substr(0, entry.rfind('_')), type = entry.substr(name.size() + 1);
  int n[8];
  for (int i = 0; i < 8; i++) n[i] = atoi(words[2 + i]);
  const fibers::Options how{n[6] != 0, decltype(fibers::Options::order)(n[7])};
  return outcome([&] {
    if (type == "bf16")
      check<bf16>(of_bf16.at(name), tiles.at(name), 2.5e-3, n, how);
    else
      check<fp16>(of_fp16.at(name), tiles.at(name), 4e-4, n, how);
  });
}
