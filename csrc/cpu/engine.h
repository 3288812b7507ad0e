// Matrix engines: what multiplies a tile of rows by 32 columns on this CPU. One for each kind of instruction, chosen when
// the program runs; everything around them is the same code.
//
// A tile is  c[r][j] = sum over taps t and k of  a[r * stride + t * tap + k] * b[t * K + k][j]
// for up to `rows` rows and 32 columns, in fp32, every sum in one order whatever the tile's size or the threads are.
// With one tap it is a piece of a matrix product; with seven that lie `tap` apart a piece of a convolution.
#pragma once
#include <cstddef>
#include <cstdint>

struct bf16 {
  uint16_t bits;
};

constexpr int COLUMNS = 32;  // of a tile: outputs, which are the rows of a weight
constexpr int K_STEP = 32;   // of which K is a multiple, for each tap

// Columns as an engine reads them: `bytes` for each of K * 32 numbers.
struct Engine {
  const char* name;
  int rows;   // most of a tile
  int bytes;  // a packed number takes
  int step;   // of which a tile's K may be a multiple where packing, whose is not, rounds it up
  // Packs columns j < n of a weight whose k lie together, w[j * stride + k]; columns from n to 32 are zeros.
  void (*pack_rows)(const bf16* w, long stride, int n, int K, void* b);
  // Packs columns of one whose j lie together, w[k * stride + j]; rows k from `valid` to K are zeros.
  void (*pack_columns)(const bf16* w, long stride, int n, int valid, int K, void* b);
  // Packs a panel, [K / 2][32][2] (acefast.panels); null where that is how packed columns lie.
  void (*pack_panel)(const bf16* w, int K, void* b);
  void (*tile)(const bf16* a, long stride, long tap, int taps, int K, const void* b, float* c, int rows);

  size_t packed(long K) const { return size_t(K) * COLUMNS * bytes; }
};

// The same for 8-bit integers, with one tap and K a multiple of 64. Packed columns have `offset` added, which makes them
// unsigned where an engine multiplies those by signed ones; c then has `offset` times the sum of a's row too much.
// Sums are exact modulo 2**32.
struct Engine8 {
  const char* name;
  int rows;
  int offset;  // 128 or 0
  void (*pack_rows)(const int8_t* w, long stride, int n, int K, int8_t* b);
  void (*tile)(const int8_t* a, long stride, int K, const int8_t* b, int32_t* c, int rows);

  size_t packed(long K) const { return size_t(K) * COLUMNS; }
};

constexpr int MOST_ROWS = 32;  // of any engine

const Engine& engine();
const Engine8& engine8();
void rest();  // what engines keep for this thread is given back; tiles are made within in_parallel alone, which calls this
