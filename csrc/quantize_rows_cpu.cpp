// Rows as 8-bit integers and a scale on a CPU, with the reference's bits.
//
// Math     scale[t] = max(max_k |x[t, k]|, 2^-100) / 127;  q[t, k] = round(x[t, k] * (1 / scale[t]))      ties to even
// Tiling   a thread takes 16 rows, each twice: the second time from the first cache
// Bytes    3 T K: x in, q out
// Bound    memory; where x lies in a cache, the arithmetic of 16 numbers at a time
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {

namespace {

// A row's scale. Magnitudes are compared by their bits, among which a NaN's are the largest.
inline float scale_of(const bf16* x, long K) {
  i32 magnitudes = (i32)all(0x1p-100f);
  for (long k = 0; k < K; k += LANES) {
    const i32 m = (i32)load(x + k) & 0x7fffffff;
    magnitudes = (magnitudes > m) ? magnitudes : m;
  }
  int32_t of[LANES], found = 0;
  std::memcpy(of, &magnitudes, sizeof of);
  for (int32_t m : of) found = m > found ? m : found;
  float largest;
  std::memcpy(&largest, &found, sizeof largest);
  return largest * (1.0f / 127);
}

inline void quantize(const bf16* x, long K, float inverse, int8_t* q) {
  constexpr long CHUNK = 256;
  float sums[CHUNK];
  for (long k = 0; k < K; k += CHUNK) {
    const long n = K - k < CHUNK ? K - k : CHUNK;
    for (long j = 0; j < n; j += LANES) {
      f32 v = load(x + k + j) * inverse;
      asm("" : "+m"(v));  // the reference rounds the product before this sum does
      store(sums + j, v + 12582912.0f);  // 1.5 * 2**23, whose last bits become v's
    }
    for (long j = 0; j < n; j++) {
      int32_t bits;
      std::memcpy(&bits, sums + j, sizeof bits);
      q[k + j] = int8_t(bits);
    }
  }
}

}  // namespace

// x and q are contiguous [R, K]; K is a multiple of 16.
void quantize_rows(const bf16* x, long R, long K, int8_t* q, float* scale, int threads) {
  in_parallel((R + 15) / 16, threads, [=](long i) {
    for (long r = 16 * i; r < R && r < 16 * i + 16; r++) {
      scale[r] = scale_of(x + r * K, K);
      quantize(x + r * K, K, 1.0f / scale[r], q + r * K);
    }
  });
}

}  // namespace LEVEL
