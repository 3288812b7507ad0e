// The engine of 8-bit products where no instruction has them: both factors become fp32, whose sums of products are exact
// below 2**24; partial sums of 512 products are added up as integers.
#include <cstring>

#include "vector.h"

namespace LEVEL {
namespace {

constexpr int ROWS = 4, CHUNK = 512;  // 512 * 255 * 127 is below 2**24

void tile(const uint8_t* a, long stride, int K, const int8_t* b, int32_t* c, int rows) {
  const int8_t* values = reinterpret_cast<const int8_t*>(a);
  std::memset(c, 0, sizeof(int32_t) * rows * COLUMNS);
  for (int k = 0; k < K; k += CHUNK)
    for (int r = 0; r < rows; r++) {
      float part[COLUMNS] = {};
      for (int i = k; i < k + CHUNK && i < K; i++) {
        const float x = values[r * stride + i];
        for (int j = 0; j < COLUMNS; j++) part[j] += x * b[long(i) * COLUMNS + j];
      }
      for (int j = 0; j < COLUMNS; j++) c[r * COLUMNS + j] += int32_t(part[j]);
    }
}

void pack_rows(const int8_t* w, long stride, int n, int K, int8_t* b, int32_t* sums) {
  for (int j = 0; j < COLUMNS; j++) {
    sums[j] = 0;
    for (int k = 0; k < K; k++) {
      const int8_t x = j < n ? w[j * stride + k] : 0;
      b[long(k) * COLUMNS + j] = x, sums[j] += x;
    }
  }
}

}  // namespace

extern const Engine8 int8_engine;
const Engine8 int8_engine = {"fp32", ROWS, 0, pack_rows, tile};

}  // namespace LEVEL
