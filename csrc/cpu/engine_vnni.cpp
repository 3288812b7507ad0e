// The 8-bit engine of AVX-512 with VNNI: as the one of bf16, with four k an instruction. It multiplies unsigned numbers by
// signed ones, which alone may come from memory, to all columns at once: so packed columns are the unsigned ones.
#include <immintrin.h>

#include <cstring>

#include "engine.h"
#include "packing.h"

namespace {

constexpr int ROWS = 12;
typedef int32_t sums __attribute__((vector_size(64)));  // as __m512i they would not stay in registers: GCC 12

template <int R>
void tile(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c) {
  sums low[R], high[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) low[r] = high[r] = sums{};
  const int8_t* row[(R + 2) / 3];  // every third; an address reaches two rows further
  for (int r = 0; r < R; r += 3) row[r / 3] = a + r * stride;
  for (int k = 0; k < K; k += 4, b += 4 * COLUMNS) {
    const __m512i first = _mm512_loadu_si512(b), second = _mm512_loadu_si512(b + 64);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      int four;
      std::memcpy(&four, row[r / 3] + r % 3 * stride + k, 4);
      const __m512i all = _mm512_set1_epi32(four);
      low[r] = (sums)_mm512_dpbusd_epi32((__m512i)low[r], first, all);
      high[r] = (sums)_mm512_dpbusd_epi32((__m512i)high[r], second, all);
    }
  }
#pragma GCC unroll 12  // else they pass through memory on their way
  for (int r = 0; r < R; r++) {
    std::memcpy(c + r * COLUMNS, &low[r], sizeof(sums));
    std::memcpy(c + r * COLUMNS + 16, &high[r], sizeof(sums));
  }
}

void any_tile(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c, int rows) {
  using Tile = void (*)(const int8_t*, long, int, const int8_t*, int32_t*);
  static constexpr Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                   tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};
  tiles[rows - 1](a, stride, K, b, c);
}

void pack(const int8_t* w, long stride, int n, int K, int8_t* b) { pack_rows(w, stride, n, K, b, char(0x80)); }

}  // namespace

extern const Engine8 vnni_engine;
const Engine8 vnni_engine = {"vnni", ROWS, 128, pack, any_tile};
