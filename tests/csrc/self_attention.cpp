// csrc/self_attention.cu, and with it csrc/common/attention.cuh, on fibers, against the equation in fp64:
//
//   self_attention TYPE SONGS ROWS GROUP WINDOW LENGTH GROWING EAGER ORDER
//
// Two key heads; songs but the first are one row shorter than LENGTH each. GROWING: scores rise with the key's number.
// Exit status 1 and a line that says what is wrong: results, rows that are not zero, or what the fibers have found.
#include <cstdio>
#include <random>

#include "device.h"
#include SOURCE
#include "memory.h"

constexpr int D = 128, KV_HEADS = 2;

template <typename T>
using Kernel = void (*)(const T*, const T*, const T*, const int*, T*, int, int, int, float, int, int, int, int, int,
                        i64, i64, i64, i64);

template <typename T>
void check(Kernel<T> kernel, double tolerance, int B, int S, int group, int window, int length, bool growing,
           fibers::Options how) {
  const int heads = group * KV_HEADS, width = (heads + 2 * KV_HEADS) * D, out_row = heads * D;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  Memory<T> qkv(size_t(B) * S * width), out(size_t(B) * S * out_row);
  Memory<int> lengths(B);
  for (int b = 0; b < B; b++) lengths[b] = length - b;
  for (size_t i = 0; i < qkv.n; i++) {  // rows from the length on stay NaN
    const int row = i / width % S, column = i % width / D;
    float x = normal(random);
    if (growing && column < heads) x = std::fabs(x);
    if (growing && column >= heads && column < heads + KV_HEADS) x = std::fabs(x) * row / 16;
    if (row < lengths[i / width / S]) qkv[i] = number<T>(x);
  }
  int bits = 0;
  while (1 << bits < group) bits++;
  const float scale = 1.4426950408889634f / std::sqrt(float(D));
  const T *k = qkv.data + heads * D, *v = k + KV_HEADS * D;
  const fibers::Index grid{unsigned((S * group + 127) / 128), KV_HEADS, unsigned(B)};
  fibers::launch(grid, 128, Attention<T>::STAGES * Attention<T>::PIECE, how, [&] {
    kernel(qkv.data, k, v, lengths.data, out.data, S, bits, window, scale, 1, width, width, width, out_row,
           i64(S) * width, i64(S) * width, i64(S) * width, i64(S) * out_row);
  });

  Error error;
  for (int b = 0; b < B; b++)
    for (int i = 0; i < S; i++)
      for (int h = 0; h < heads; h++) {
        T* const got = out.data + (size_t(b) * S + i) * out_row + h * D;
        auto row = [&](const T* at, int j) { return at + (size_t(b) * S + j) * width + h / group * D; };
        const int first = std::max(0, i - window), last = std::min(lengths[b] - 1, i + window);
        std::vector<double> score;
        double largest = -INFINITY, total = 0;
        for (int j = first; i < lengths[b] && j <= last; j++) {
          double dot = 0;
          const T* q = qkv.data + (size_t(b) * S + i) * width + h * D;
          for (int d = 0; d < D; d++) dot += double(value(q[d])) * value(row(k, j)[d]);
          score.push_back(dot / std::sqrt(double(D)));
          largest = std::max(largest, score.back());
        }
        for (double& s : score) total += s = std::exp(s - largest);
        for (int d = 0; d < D; d++) {
          double meant = 0;
          for (size_t n = 0; n < score.size(); n++) meant += score[n] / total * value(row(v, first + int(n))[d]);
          if (score.empty() && value(got[d]) != 0) fibers::fail("a row of padding is not zero");
          error.add(value(got[d]), meant);
        }
      }
  error.hold(tolerance);
}

int main(int count, char** words) {
  if (count != 10) return 2;
  int n[8];
  for (int i = 0; i < 8; i++) n[i] = atoi(words[2 + i]);
  const fibers::Options how{n[6] != 0, decltype(fibers::Options::order)(n[7])};
  return outcome([&] {
    if (std::string(words[1]) == "bf16")
      check<bf16>(self_attention_bf16, 4e-3, n[0], n[1], n[2], n[3], n[4], n[5], how);
    else
      check<fp16>(self_attention_fp16, 6e-4, n[0], n[1], n[2], n[3], n[4], n[5], how);
  });
}
