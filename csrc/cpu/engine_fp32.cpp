// The engine of CPUs that have no bf16 products: both factors become fp32. Compiled once for each level: 12 rows in
// AVX-512's registers, 6 in AVX2's, 4 elsewhere, each by two vectors of columns at a time.
#include <cstring>

#include "vector.h"

namespace LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 12;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, ROWS = 6;
#else
constexpr int WIDTH = 4, ROWS = 4;
#endif
constexpr int CHUNK = 256;  // numbers of a row that are made fp32 at a time, in the first cache
typedef float vec __attribute__((vector_size(4 * WIDTH)));

inline vec get(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <int R>
void part(const float (*a)[CHUNK], int length, const float* b, float* c) {
  for (int j = 0; j < COLUMNS; j += 2 * WIDTH) {
    vec low[R], high[R];
    for (int r = 0; r < R; r++) low[r] = get(c + r * COLUMNS + j), high[r] = get(c + r * COLUMNS + j + WIDTH);
    for (int k = 0; k < length; k++) {
      const vec first = get(b + k * COLUMNS + j), second = get(b + k * COLUMNS + j + WIDTH);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) low[r] += first * a[r][k], high[r] += second * a[r][k];
    }
    for (int r = 0; r < R; r++) {
      std::memcpy(c + r * COLUMNS + j, &low[r], sizeof(vec));
      std::memcpy(c + r * COLUMNS + j + WIDTH, &high[r], sizeof(vec));
    }
  }
}

template <int R>
void tile(const bf16* a, long stride, long tap, int taps, int K, const float* b, float* c) {
  alignas(64) float rows[R][CHUNK];
  std::memset(c, 0, sizeof(float) * R * COLUMNS);
  for (int t = 0; t < taps; t++)
    for (int k = 0; k < K; k += CHUNK) {
      const int length = K - k < CHUNK ? K - k : CHUNK;
      for (int r = 0; r < R; r++)
        for (int i = 0; i < length; i += LANES) store(rows[r] + i, load(a + t * tap + r * stride + k + i));
      part<R>(rows, length, b, c);
      b += length * COLUMNS;
    }
}

template <int R = ROWS>
void of_rows(const bf16* a, long stride, long tap, int taps, int K, const float* b, float* c, int rows) {
  if (rows == R) return tile<R>(a, stride, tap, taps, K, b, c);
  if constexpr (R > 1) of_rows<R - 1>(a, stride, tap, taps, K, b, c, rows);
}

void any_tile(const bf16* a, long stride, long tap, int taps, int K, const void* b, float* c, int rows) {
  of_rows(a, stride, tap, taps, K, static_cast<const float*>(b), c, rows);
}

void pack_rows(const bf16* w, long stride, int n, int K, void* packed) {
  float* b = static_cast<float*>(packed);
  for (int j = 0; j < COLUMNS; j++)
    for (int k = 0; k < K; k++) b[k * COLUMNS + j] = j < n ? value(w[j * stride + k]) : 0.0f;
}

void pack_columns(const bf16* w, long stride, int n, int valid, int K, void* packed) {
  float* b = static_cast<float*>(packed);
  for (int k = 0; k < K; k++)
    for (int j = 0; j < COLUMNS; j++) b[k * COLUMNS + j] = k < valid && j < n ? value(w[k * stride + j]) : 0.0f;
}

void pack_panel(const bf16* w, int K, void* packed) {
  float* b = static_cast<float*>(packed);
  for (int k = 0; k < K; k++)
    for (int j = 0; j < COLUMNS; j++) b[k * COLUMNS + j] = value(w[(k / 2 * COLUMNS + j) * 2 + k % 2]);
}

}  // namespace

extern const Engine fp32_engine;
const Engine fp32_engine = {"fp32", ROWS, 4, LANES, pack_rows, pack_columns, pack_panel, any_tile};

}  // namespace LEVEL
