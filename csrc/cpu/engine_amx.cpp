// The engines of AMX: two by two tiles of 16 rows and 16 columns, fed by two tiles of rows and two of packed columns, so
// that each tile that is loaded is multiplied twice.
#include <immintrin.h>

#include <cstring>

#include "engine.h"
#include "packing.h"

namespace {

constexpr int ROWS = 32;

struct alignas(64) Shapes {  // what ldtilecfg reads
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  explicit Shapes(int count) {
    const int first = count < 16 ? count : 16, second = count - first;
    const int of[8] = {first, first, second, second, first, second, 16, 16};  // products, rows, columns
    for (int i = 0; i < 8; i++)
      if (of[i]) bytes[i] = 64, rows[i] = of[i];
  }
};

// To configure tiles takes as long as eighteen of their products (measured): they stay as they are from one call to the
// next of as many rows, until this thread's work is done.
thread_local int configured = 0;  // rows

void configure(int rows) {
  if (rows == configured) return;
  const Shapes shapes(rows);
  _tile_loadconfig(&shapes);
  configured = rows;
}

template <bool BOTH>
void bf16_tiles(const bf16* a, long stride, long tap, int taps, int K, const char* b, float* c) {
  _tile_zero(0);
  _tile_zero(1);
  if (BOTH) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int t = 0; t < taps; t++)
    for (int k = 0; k < K; k += 32, b += 64 * COLUMNS) {
      _tile_loadd(6, b, 4 * COLUMNS);
      _tile_loadd(7, b + 64, 4 * COLUMNS);
      _tile_loadd(4, a + t * tap + k, 2 * stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (BOTH) {
        _tile_loadd(5, a + 16 * stride + t * tap + k, 2 * stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  _tile_stored(0, c, 4 * COLUMNS);
  _tile_stored(1, c + 16, 4 * COLUMNS);
  if (BOTH) {
    _tile_stored(2, c + 16 * COLUMNS, 4 * COLUMNS);
    _tile_stored(3, c + 16 * COLUMNS + 16, 4 * COLUMNS);
  }
}

void tile(const bf16* a, long stride, long tap, int taps, int K, const void* b, float* c, int rows) {
  configure(rows);
  (rows > 16 ? bf16_tiles<true> : bf16_tiles<false>)(a, stride, tap, taps, K, static_cast<const char*>(b), c);
}

template <bool BOTH>
void int8_tiles(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c) {
  _tile_zero(0);
  _tile_zero(1);
  if (BOTH) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < K; k += 64, b += 64 * COLUMNS) {
    _tile_loadd(6, b, 4 * COLUMNS);
    _tile_loadd(7, b + 64, 4 * COLUMNS);
    _tile_loadd(4, a + k, stride);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    if (BOTH) {
      _tile_loadd(5, a + 16 * stride + k, stride);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, c, 4 * COLUMNS);
  _tile_stored(1, c + 16, 4 * COLUMNS);
  if (BOTH) {
    _tile_stored(2, c + 16 * COLUMNS, 4 * COLUMNS);
    _tile_stored(3, c + 16 * COLUMNS + 16, 4 * COLUMNS);
  }
}

void tile8(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c, int rows) {
  configure(rows);
  (rows > 16 ? int8_tiles<true> : int8_tiles<false>)(a, stride, K, b, c);
}

void pack8(const int8_t* w, long stride, int n, int K, int8_t* b) { pack_rows(w, stride, n, K, b, 0); }

}  // namespace

void amx_rest() {
  if (configured) _tile_release();
  configured = 0;
}

extern const Engine amx_engine;
const Engine amx_engine = {"amx", ROWS, 2, K_STEP, pack_rows, pack_columns, nullptr, tile};

extern const Engine8 amx8_engine;
const Engine8 amx8_engine = {"amx", ROWS, 0, pack8, tile8};
