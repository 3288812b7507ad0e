// csrc/conv1d.cu on fibers, against the equation in fp64:
//
//   conv1d ENTRY SONGS ROWS CIN COUT TAPS STRIDE DILATION RESIDUAL RESULTS EAGER ORDER
//
// ROWS are the result's; RESULTS: 1 y, over the residual if there is one, 2 its snake, 3 both.
// Exit status 1 and a line that says what is wrong: results, guards, or what the fibers have found.
#include <cstdio>
#include <map>
#include <random>

#include "device.h"
#include SOURCE
#include "memory.h"

constexpr int GUARD = 32;

template <typename T>
using Kernel = void (*)(const T*, const T*, const T*, const T*, const float*, const float*, T*, T*, int, int, int, int,
                        int, int, int, int, int);

struct Tile {
  int n, k, stages;
};

double snake_exact(double x, double alpha, double inv_beta) { return x + inv_beta * sin(alpha * x) * sin(alpha * x); }

template <typename T>
void check(Kernel<T> kernel, Tile tile, double tolerance, const int* size, fibers::Options how) {
  const int B = size[0], R = size[1], Cin = size[2], Cout = size[3], taps = size[4], stride = size[5], d = size[6];
  const bool residual = size[7], keep = size[8] & 1, wave = size[8] & 2;
  const int padding = (taps - 1) * d / 2, L = (R - 1) * stride + (taps - 1) * d + 1 - 2 * padding;
  const int from_song = (L + 2 * GUARD) * Cin, song = (R + 2 * GUARD) * Cout;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  auto fill = [&](Memory<T>& m, float scale, int C, int rows) {  // rows between zeros, of anything a row
    for (size_t i = 0; i < m.n; i++) {
      const int row = rows ? int(i / C % (rows + 2 * GUARD)) - GUARD : 0;
      m[i] = number<T>(row >= 0 && row < (rows ? rows : 1) ? normal(random) * scale : 0);
    }
  };
  Memory<T> x(size_t(B) * from_song), weight(size_t(Cout) * taps * Cin), bias(Cout), y(size_t(B) * song), waved(y.n);
  Memory<T> added(y.n);
  fill(x, 1, Cin, L), fill(weight, 1 / std::sqrt(float(taps * Cin)), 1, 0), fill(bias, 1, 1, 0), fill(added, 1, Cout, R);
  if (residual) memcpy(y.data, added.data, y.n * sizeof(T));
  Memory<float> alpha(Cout), inv_beta(Cout);
  for (int i = 0; i < Cout; i++) alpha[i] = std::fabs(normal(random)) + 0.1f, inv_beta[i] = std::fabs(normal(random));

  const fibers::Index grid{unsigned((R + 127) / 128 * (Cout / tile.n)), 1, unsigned(B)};
  fibers::launch(grid, tile.n, size_t(128 + tile.n) * tile.k * 2 * tile.stages, how, [&] {
    kernel(x.data, weight.data, bias.data, residual ? (keep ? y.data : added.data) : nullptr, alpha.data, inv_beta.data,
           keep ? y.data : nullptr, wave ? waved.data : nullptr, L, R, Cin, Cout, taps, stride, padding, d, GUARD);
  });

  Error errors[2];
  for (size_t at = 0; at < y.n; at++) {
    const int b = at / song, row = int(at % song / Cout) - GUARD, c = at % Cout;
    if (row < 0 || row >= R) {
      if (keep && y[at].bits) fibers::fail("a guard of y is not zero");
      if (wave && waved[at].bits) fibers::fail("a guard of waved is not zero");
      continue;
    }
    double sum = value(bias[c]) + (residual ? value(added[at]) : 0);
    for (int tap = 0; tap < taps; tap++)
      for (int k = 0; k < Cin; k++)
        sum += value(weight[(size_t(c) * taps + tap) * Cin + k]) *
               value(x[size_t(b) * from_song + (row * stride + tap * d - padding + GUARD) * Cin + k]);
    const double meant[2] = {sum, snake_exact(sum, alpha[c], inv_beta[c])};
    const double got[2] = {keep ? value(y[at]) : meant[0], wave ? value(waved[at]) : meant[1]};
    for (int i = 0; i < 2; i++) errors[i].add(got[i], meant[i]);
  }
  for (const Error& error : errors) error.hold(tolerance);
}

int main(int count, char** words) {
  if (count != 13) return 2;
  const std::map<std::string, Tile> tiles = {{"n256_k64", {256, 64, 3}}, {"n128_k64", {128, 64, 2}}, {"n128_k32", {128, 32, 3}}};
  const std::map<std::string, Kernel<bf16>> of_bf16 = {{"n256_k64", conv1d_n256_k64_bf16},
                                                       {"n128_k64", conv1d_n128_k64_bf16},
                                                       {"n128_k32", conv1d_n128_k32_bf16}};
  const std::map<std::string, Kernel<fp16>> of_fp16 = {{"n256_k64", conv1d_n256_k64_fp16},
                                                       {"n128_k64", conv1d_n128_k64_fp16},
                                                       {"n128_k32", conv1d_n128_k32_fp16}};
  const std::string entry = words[1], name = entry.substr(0, entry.rfind('_')), type = entry.substr(name.size() + 1);
  int n[11];
  for (int i = 0; i < 11; i++) n[i] = atoi(words[2 + i]);
  const fibers::Options how{n[9] != 0, decltype(fibers::Options::order)(n[10])};
  return outcome([&] {
    if (type == "bf16")
      check<bf16>(of_bf16.at(name), tiles.at(name), 2.5e-3, n, how);
    else
      check<fp16>(of_fp16.at(name), tiles.at(name), 4e-4, n, how);
  });
}
