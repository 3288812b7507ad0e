// The engine of 8-bit products where no instruction has them: both factors become 16-bit, whose products two k of a
// column add up to 32 bits in one instruction of x86. Compiled once for each level: 12 rows in AVX-512's registers, 6 in
// AVX2's, 4 elsewhere, each by two vectors of columns at a time.
#include <cstring>

#include "vector.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace LEVEL {
namespace {

#if defined(__AVX512BW__)
constexpr int WIDTH = 16, ROWS = 12;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, ROWS = 6;
#else
constexpr int WIDTH = 4, ROWS = 4;
#endif
constexpr int CHUNK = 512;  // numbers of a row that are made 16-bit at a time, in the first cache
typedef int32_t sums __attribute__((vector_size(4 * WIDTH)));
typedef int16_t pairs __attribute__((vector_size(4 * WIDTH)));  // of neighbouring k, for each column
typedef int8_t packed __attribute__((vector_size(2 * WIDTH)));

inline pairs get(const int8_t* p) {
  packed v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, pairs);
}

inline sums products(pairs a, pairs b) {
#if defined(__AVX512BW__)
  return (sums)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (sums)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (sums)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const sums x = (sums)a, y = (sums)b;  // the second of a pair above, the first below
  return (x >> 16) * (y >> 16) + (x << 16 >> 16) * (y << 16 >> 16);
#endif
}

template <int R>
void part(const int16_t (*a)[CHUNK], int length, const int8_t* b, int32_t* c) {
  for (int j = 0; j < COLUMNS; j += 2 * WIDTH) {
    sums low[R], high[R];
    for (int r = 0; r < R; r++) {
      std::memcpy(&low[r], c + r * COLUMNS + j, sizeof(sums));
      std::memcpy(&high[r], c + r * COLUMNS + j + WIDTH, sizeof(sums));
    }
    for (int k = 0; k < length; k += 2) {
      const pairs first = get(b + k * COLUMNS + 2 * j), second = get(b + k * COLUMNS + 2 * (j + WIDTH));
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        int32_t pair;
        std::memcpy(&pair, a[r] + k, 4);
        const pairs both = (pairs)(pair - sums{});
        low[r] += products(both, first), high[r] += products(both, second);
      }
    }
    for (int r = 0; r < R; r++) {
      std::memcpy(c + r * COLUMNS + j, &low[r], sizeof(sums));
      std::memcpy(c + r * COLUMNS + j + WIDTH, &high[r], sizeof(sums));
    }
  }
}

template <int R>
void tile(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c) {
  alignas(64) int16_t rows[R][CHUNK];
  std::memset(c, 0, sizeof(int32_t) * R * COLUMNS);
  for (int k = 0; k < K; k += CHUNK) {
    const int length = K - k < CHUNK ? K - k : CHUNK;
    for (int r = 0; r < R; r++)
      for (int i = 0; i < length; i++) rows[r][i] = a[r * stride + k + i];
    part<R>(rows, length, b + long(k) * COLUMNS, c);
  }
}

template <int R = ROWS>
void of_rows(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c, int rows) {
  if (rows == R) return tile<R>(a, stride, K, b, c);
  if constexpr (R > 1) of_rows<R - 1>(a, stride, K, b, c, rows);
}

void any_tile(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c, int rows) {
  of_rows(a, stride, K, b, c, rows);
}

void pack_rows(const int8_t* w, long stride, int n, int K, int8_t* b) {
  for (int j = 0; j < COLUMNS; j++)
    for (int k = 0; k < K; k++) b[(k / 2 * COLUMNS + j) * 2L + k % 2] = j < n ? w[j * stride + k] : 0;
}

}  // namespace

extern const Engine8 int8_engine;
const Engine8 int8_engine = {"int16", ROWS, 0, pack_rows, any_tile};

}  // namespace LEVEL
