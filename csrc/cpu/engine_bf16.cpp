// The engine of AVX-512 with bf16 dot products: 12 rows by 32 columns in 24 of the 32 registers. A packed column pair of
// k lies together, b[k / 2][j][2], so that one instruction multiplies two k of 16 columns.
#include <immintrin.h>

#include <cstring>

#include "engine.h"
#include "packing.h"

namespace {

constexpr int ROWS = 12;

template <int R>
void tile(const bf16* a, long stride, long tap, int taps, int K, const void* packed, float* c) {
  const char* b = static_cast<const char*>(packed);
  __m512 low[R], high[R];
  if (taps < 1 || K < 2) __builtin_unreachable();  // or gcc keeps the sums in memory around the loops
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) low[r] = high[r] = _mm512_setzero_ps();
  for (int t = 0; t < taps; t++) {
    const bf16* row[(R + 2) / 3];  // every third; an address reaches two rows further
    for (int r = 0; r < R; r += 3) row[r / 3] = a + t * tap + r * stride;
    for (int k = 0; k < K; k += 2, b += 4 * COLUMNS) {
      const __m512bh first = (__m512bh)_mm512_loadu_si512(b), second = (__m512bh)_mm512_loadu_si512(b + 64);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        int pair;
        std::memcpy(&pair, row[r / 3] + r % 3 * stride + k, 4);
        const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
        low[r] = _mm512_dpbf16_ps(low[r], first, both);
        high[r] = _mm512_dpbf16_ps(high[r], second, both);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
    _mm512_storeu_ps(c + r * COLUMNS, low[r]);
    _mm512_storeu_ps(c + r * COLUMNS + 16, high[r]);
  }
}

void any_tile(const bf16* a, long stride, long tap, int taps, int K, const void* b, float* c, int rows) {
  using Tile = void (*)(const bf16*, long, long, int, int, const void*, float*);
  static constexpr Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                   tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};
  tiles[rows - 1](a, stride, tap, taps, K, b, c);
}

}  // namespace

extern const Engine bf16_engine;
const Engine bf16_engine = {"bf16", ROWS, 2, 16, pack_rows, pack_columns, nullptr, any_tile};
