// AMX on a CPU that has none: the tile instructions as Intel's manual describes them, for an engine that is compiled with
// this header before its own. What the hardware would refuse ends the program, and each instruction is counted.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx {

struct Config {  // 64 bytes in memory
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct Tile {
  uint8_t row[16][64];
};

inline Config config = {};
inline Tile tiles[8];
inline long configured = 0, loads = 0, products = 0, stores = 0;

inline void need(bool holds, const char* what) {
  if (!holds) std::printf("AMX: %s\n", what), std::exit(1);
}

inline void load_config(const void* memory) {
  std::memcpy(&config, memory, sizeof config);
  need(config.palette == 1 && config.start == 0, "palette 1 starts at row 0");
  for (uint8_t byte : config.reserved) need(byte == 0, "reserved bytes are zeros");
  for (int i = 0; i < 16; i++) {
    need(config.rows[i] <= 16 && config.bytes[i] <= 64, "a tile has at most 16 rows of 64 bytes");
    need((config.rows[i] == 0) == (config.bytes[i] == 0), "rows and bytes of a tile are both zero or neither is");
    need(i < 8 || config.rows[i] == 0, "there are 8 tiles");
  }
  std::memset(tiles, 0, sizeof tiles);
  configured++;
}

inline void release() { config = {}; }

inline Tile& tile(int i) {
  need(config.palette == 1, "tiles are used between their configuration and their release");
  need(config.rows[i] != 0, "a tile that is used is configured");
  return tiles[i];
}

inline void zero(int i) { std::memset(&tile(i), 0, sizeof(Tile)); }

inline void load(int i, const void* base, long stride) {
  Tile& t = tile(i);
  std::memset(&t, 0, sizeof t);
  for (int r = 0; r < config.rows[i]; r++)
    std::memcpy(t.row[r], static_cast<const char*>(base) + r * stride, config.bytes[i]);
  loads++;
}

inline void store(int i, void* base, long stride) {
  const Tile& t = tile(i);
  for (int r = 0; r < config.rows[i]; r++)
    std::memcpy(static_cast<char*>(base) + r * stride, t.row[r], config.bytes[i]);
  stores++;
}

inline void need_product(int c, int a, int b) {
  tile(c), tile(a), tile(b);
  need(c != a && c != b && a != b, "the tiles of a product are three");
  need(config.rows[c] == config.rows[a] && config.bytes[c] == config.bytes[b], "a product has a's rows, b's columns");
  need(config.bytes[a] == 4 * config.rows[b], "b has a row for every four bytes of a's");
  need(config.bytes[a] % 4 == 0 && config.bytes[b] % 4 == 0, "rows are 32-bit numbers");
  products++;
}

inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

inline float bf16_at(const uint8_t* p) {
  const uint32_t bits = uint32_t(p[0] | p[1] << 8) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return flushed(x);
}

inline void bf16_product(int c, int a, int b) {  // TDPBF16PS: even and odd k are summed apart, then added to c
  need_product(c, a, b);
  for (int m = 0; m < config.rows[c]; m++)
    for (int n = 0; n < config.bytes[c] / 4; n++) {
      float part[2] = {};
      for (int k = 0; k < config.bytes[a] / 4; k++)
        for (int odd = 0; odd < 2; odd++) {
          const float x = bf16_at(&tiles[a].row[m][4 * k + 2 * odd]), y = bf16_at(&tiles[b].row[k][4 * n + 2 * odd]);
          part[odd] = flushed(std::fma(x, y, part[odd]));
        }
      float sum;
      std::memcpy(&sum, &tiles[c].row[m][4 * n], 4);
      sum = flushed(flushed(sum) + flushed(part[0] + part[1]));
      std::memcpy(&tiles[c].row[m][4 * n], &sum, 4);
    }
}

inline void int8_product(int c, int a, int b) {  // TDPBSSD: both signed
  need_product(c, a, b);
  for (int m = 0; m < config.rows[c]; m++)
    for (int n = 0; n < config.bytes[c] / 4; n++) {
      int32_t sum;
      std::memcpy(&sum, &tiles[c].row[m][4 * n], 4);
      for (int k = 0; k < config.bytes[a]; k++)
        sum += int8_t(tiles[a].row[m][k]) * int8_t(tiles[b].row[k / 4][4 * n + k % 4]);
      std::memcpy(&tiles[c].row[m][4 * n], &sum, 4);
    }
}

}  // namespace amx

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig amx::load_config
#define _tile_release amx::release
#define _tile_zero amx::zero
#define _tile_loadd amx::load
#define _tile_stored amx::store
#define _tile_dpbf16ps amx::bf16_product
#define _tile_dpbssd amx::int8_product
