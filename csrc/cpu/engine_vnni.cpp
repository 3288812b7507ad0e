// The 8-bit engine of AVX-512 with VNNI: as the one of bf16, with four k an instruction. It multiplies unsigned numbers by
// signed ones, so rows come with 128 added.
#include <immintrin.h>

#include <cstring>

#include "engine.h"
#include "packing.h"

namespace {

constexpr int ROWS = 12;

template <int R>
void tile(const uint8_t* a, long stride, int K, const int8_t* b, int32_t* c) {
  __m512i low[R], high[R];
  for (int r = 0; r < R; r++) low[r] = high[r] = _mm512_setzero_si512();
  const uint8_t* row[(R + 2) / 3];  // every third; an address reaches two rows further
  for (int r = 0; r < R; r += 3) row[r / 3] = a + r * stride;
  for (int k = 0; k < K; k += 4, b += 4 * COLUMNS) {
    const __m512i first = _mm512_loadu_si512(b), second = _mm512_loadu_si512(b + 64);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      int four;
      std::memcpy(&four, row[r / 3] + r % 3 * stride + k, 4);
      const __m512i all = _mm512_set1_epi32(four);
      low[r] = _mm512_dpbusd_epi32(low[r], all, first);
      high[r] = _mm512_dpbusd_epi32(high[r], all, second);
    }
  }
  for (int r = 0; r < R; r++) {
    _mm512_storeu_si512(c + r * COLUMNS, low[r]);
    _mm512_storeu_si512(c + r * COLUMNS + 16, high[r]);
  }
}

void any_tile(const uint8_t* a, long stride, int K, const int8_t* b, int32_t* c, int rows) {
  using Tile = void (*)(const uint8_t*, long, int, const int8_t*, int32_t*);
  static constexpr Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                   tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};
  tiles[rows - 1](a, stride, K, b, c);
}

}  // namespace

extern const Engine8 vnni_engine;
const Engine8 vnni_engine = {"vnni", ROWS, 128, pack_rows, any_tile};
