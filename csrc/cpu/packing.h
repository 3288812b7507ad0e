// How the engines with dot products lay columns: bf16 in pairs of k, b[k / 2][j][2], and 8-bit integers in fours,
// b[k / 4][j][4], so that one instruction multiplies the k of 16 columns that lie in one 32-bit number each.
#pragma once
#include <immintrin.h>

#include "engine.h"

namespace {

// 16 rows of 16 numbers, turned.
inline void transpose(__m512i v[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// 16 rows from end to end: more streams than that, a CPU does not fetch ahead (measured, Zen 4: 17 against 6 GB/s). It
// begins anew with each 16, so those after the next are asked for (measured there, K 1024: 1.5 times as fast).
inline void pack_rows(const bf16* w, long stride, int n, int K, void* packed) {
  char* b = static_cast<char*>(packed);
  for (int side = 0; side < 2; side++)
    for (int k = 0; k < K; k += 32) {
      __m512i v[16];
      for (int j = 0; j < 16; j++) {
        const bf16* at = w + (side * 16 + j) * stride + k;
        v[j] = side * 16 + j < n ? _mm512_loadu_si512(at) : _mm512_setzero_si512();
        __builtin_prefetch(at + 32 * stride, 0, 2);
      }
      transpose(v);
      for (int i = 0; i < 16; i++) _mm512_storeu_si512(b + (k / 2 + i) * 4 * COLUMNS + side * 64, v[i]);
    }
}

inline void pack_columns(const bf16* w, long stride, int n, int valid, int K, void* packed) {
  char* b = static_cast<char*>(packed);
  const __mmask32 columns = n >= 32 ? ~0u : (1u << n) - 1;
  for (int k = 0; k < K; k += 2, b += 4 * COLUMNS) {
    const __m512i even = k < valid ? _mm512_maskz_loadu_epi16(columns, w + k * stride) : _mm512_setzero_si512();
    const __m512i odd =
        k + 1 < valid ? _mm512_maskz_loadu_epi16(columns, w + (k + 1) * stride) : _mm512_setzero_si512();
    for (int side = 0; side < 2; side++) {
      const __m512i e = _mm512_cvtepu16_epi32(side ? _mm512_extracti64x4_epi64(even, 1) : _mm512_castsi512_si256(even));
      const __m512i o = _mm512_cvtepu16_epi32(side ? _mm512_extracti64x4_epi64(odd, 1) : _mm512_castsi512_si256(odd));
      _mm512_storeu_si512(b + side * 64, _mm512_or_si512(e, _mm512_slli_epi32(o, 16)));
    }
  }
}

// `flipped`: bits that are turned around in each number; 0x80 adds 128 to it.
inline void pack_rows(const int8_t* w, long stride, int n, int K, int8_t* b, char flipped) {
  const __m512i flip = _mm512_set1_epi8(flipped);
  for (int k = 0; k < K; k += 64)
    for (int side = 0; side < 2; side++) {
      __m512i v[16];
      for (int j = 0; j < 16; j++)
        v[j] = side * 16 + j < n ? _mm512_loadu_si512(w + (side * 16 + j) * stride + k) : _mm512_setzero_si512();
      transpose(v);
      for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(b + (k / 4 + i) * 4L * COLUMNS + side * 64, _mm512_xor_si512(v[i], flip));
    }
}

}  // namespace
