// Fourier transforms of real numbers, of a power of two up to 32 points, of 16 columns at a time.
#pragma once
#include "vector.h"

#define INLINE inline __attribute__((always_inline))

namespace LEVEL {

constexpr float COSINES[9] = {1.0f,         0.980785280f, 0.923879533f, 0.831469612f, 0.707106781f,
                              0.555570233f, 0.382683432f, 0.195090322f, 0.0f};  // of 2 pi k / 32

// re[f] + i im[f] = sum_n x[n APART] exp(-2 pi i f n / N), f from 0 to N / 2: of the even and of the odd points first.
template <int N, int APART = 1>
INLINE void transform(const f32* x, f32* re, f32* im) {
  if constexpr (N == 2) {
    re[0] = x[0] + x[APART], re[1] = x[0] - x[APART];
  } else {
    f32 even[N / 4 + 1], even_im[N / 4 + 1], odd[N / 4 + 1], odd_im[N / 4 + 1];
    transform<N / 2, 2 * APART>(x, even, even_im);
    transform<N / 2, 2 * APART>(x + APART, odd, odd_im);
    re[0] = even[0] + odd[0], re[N / 2] = even[0] - odd[0];
    re[N / 4] = even[N / 4], im[N / 4] = -odd[N / 4];
#pragma GCC unroll 8
    for (int f = 1; f < N / 4; f++) {
      const float c = COSINES[32 / N * f], s = COSINES[8 - 32 / N * f];
      const f32 a = c * odd[f] + s * odd_im[f], b = c * odd_im[f] - s * odd[f];
      re[f] = even[f] + a, im[f] = even_im[f] + b;
      re[N / 2 - f] = even[f] - a, im[N / 2 - f] = b - even_im[f];
    }
  }
}

// x[n APART] = sum_f (re[f] + i im[f]) exp(2 pi i f n / N) over all N frequencies, of which re and im have the first half.
template <int N, int APART = 1>
INLINE void invert(const f32* re, const f32* im, f32* x) {
  if constexpr (N == 2) {
    x[0] = re[0] + re[1], x[APART] = re[0] - re[1];
  } else {
    f32 even[N / 4 + 1], even_im[N / 4 + 1], odd[N / 4 + 1], odd_im[N / 4 + 1];
    even[0] = re[0] + re[N / 2], odd[0] = re[0] - re[N / 2];
    even[N / 4] = 2.0f * re[N / 4], odd[N / 4] = -2.0f * im[N / 4];
#pragma GCC unroll 8
    for (int f = 1; f < N / 4; f++) {
      const float c = COSINES[32 / N * f], s = COSINES[8 - 32 / N * f];
      const f32 a = re[f] - re[N / 2 - f], b = im[f] + im[N / 2 - f];
      even[f] = re[f] + re[N / 2 - f], even_im[f] = im[f] - im[N / 2 - f];
      odd[f] = c * a - s * b, odd_im[f] = c * b + s * a;
    }
    invert<N / 2, 2 * APART>(even, even_im, x);
    invert<N / 2, 2 * APART>(odd, odd_im, x + APART);
  }
}

}  // namespace LEVEL
