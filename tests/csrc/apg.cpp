// csrc/apg.cu on fibers, two guided steps in a row against the equations in fp64:
//
//   apg SONGS FRAMES CHANNELS OMEGA AT_ONCE SEED
//
// OMEGA is 0 or 1, AT_ONCE how many blocks run at a time. Exit status 1 and a line that says what is wrong.
#include <cstdio>

#include "device.h"
#include SOURCE
#include "memory.h"

constexpr float SCALE = 7, MOMENTUM = -0.75f, THRESHOLD = 2.5f, ETA = 0.3f, OMEGA = 1.3f;

void check(int B, int T, int D, bool stretched, fibers::Options how) {
  const int along = (T + 255) / 256, tiles = B * along * ((D + 15) / 16), n = B * T * D, stages = stretched ? 3 : 2;
  Memory<float> c(n), u(n), m(n), x(n), partials(B * along * 3 * D), velocity(n), numbers(4), times(8), omega(1);
  Memory<double> sums(tiles);
  Memory<int> clock(1 + tiles);
  Memory<u32> counters(1 + B), lengths(B);
  const float given[] = {SCALE, MOMENTUM, THRESHOLD, ETA}, table[] = {1, 0.25f, 0.75f, 0.25f, 0.75f, 0.5f, 0.25f, 0.75f};
  memcpy(numbers.data, given, sizeof(given)), memcpy(times.data, table, sizeof(table)), omega[0] = OMEGA;
  memset(counters.data, 0, counters.n * 4), memset(clock.data, 0, clock.n * 4);
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::vector<double> momentum(n), latents(n), v(n);
  for (int i = 0; i < n; i++) c[i] = normal(random), u[i] = normal(random), m[i] = normal(random), x[i] = normal(random);
  for (int i = 0; i < n; i++) momentum[i] = m[i], latents[i] = x[i];
  for (int b = 0; b < B; b++) lengths[b] = b ? T / 2 + 1 : T;

  for (int step = 0; step < 2; step++) {
    fibers::launch({unsigned(stages * tiles), 1, 1}, THREADS, sizeof(Shared), how, [&] {
      const i64 song = i64(T) * D;
      apg_step_fp32(c.data, song, D, u.data, song, D, m.data, m.data, partials.data, numbers.data, x.data, song, D,
                    x.data, song, D, nullptr, 0, 0, times.data, 0, clock.data, nullptr, nullptr, nullptr, nullptr,
                    nullptr, nullptr, lengths.data, 1, stretched ? omega.data : nullptr, velocity.data, sums.data,
                    counters.data, T, D);
    });
    for (size_t i = 0; i < counters.n; i++)
      if (counters[i]) fibers::fail("a counter is not 0 again");
    for (size_t i = 0; i < clock.n; i++)
      if (clock[i] != step + 1) fibers::fail("the clock has not gone on");
    for (int b = 0; b < B; b++) {
      const int end = lengths[b];
      double mean = 0;
      for (int d = 0; d < D; d++) {
        auto at = [&](int t) { return (b * T + t) * D + d; };
        double A = 0, C = 0, P = 0;
        for (int t = 0; t < end; t++) {
          double& now = momentum[at(t)];
          now = double(c[at(t)]) - u[at(t)] + MOMENTUM * now;
          A += now * now, C += double(c[at(t)]) * c[at(t)], P += now * c[at(t)];
        }
        const double q = std::min(1.0, THRESHOLD / std::sqrt(A));
        for (int t = 0; t < end; t++) {
          const double parallel = q * P / C * c[at(t)];
          v[at(t)] = c[at(t)] + (SCALE - 1) * (q * momentum[at(t)] - parallel + ETA * parallel);
          mean += v[at(t)] * times[4 * step + 1] / (double(end) * D);
        }
      }
      Error of_latents, of_momentum;
      for (int i = b * T * D; i < (b * T + T) * D; i++) {
        if (i < (b * T + end) * D) {
          const double change = v[i] * times[4 * step + 1];
          latents[i] -= stretched ? (change - mean) * OMEGA + mean : change;
        }
        of_latents.add(x[i], latents[i]), of_momentum.add(m[i], momentum[i]);
      }
      of_latents.hold(1e-6), of_momentum.hold(1e-6);
    }
  }
}

int main(int count, char** words) {
  if (count != 7) return 2;
  int n[6];
  for (int i = 0; i < 6; i++) n[i] = atoi(words[1 + i]);
  fibers::Options how;
  how.at_once = n[4], how.seed = n[5];
  return outcome([&] {
    check(n[0], n[1], n[2], n[3] != 0, how);
  });
}
