// The words of CUDA C++ that csrc/ uses, and csrc/common/ptx.cuh's functions, for g++: threads are fibers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "fibers.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (fibers::Index{fibers::Block::current->fiber().thread})
#define blockIdx (fibers::Block::current->index)
#define DEVICE_TEXT_(n) #n
#define DEVICE_TEXT(n) DEVICE_TEXT_(n)
#define __syncthreads() fibers::Block::current->meet_block(__FILE__ ":" DEVICE_TEXT(__LINE__))

struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned places) {
  const uint64_t both = uint64_t(high) << 32 | low;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= unsigned(both >> 8 * (places >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

template <typename To, typename From>
To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __uint_as_float(unsigned v) { return bits_of<float>(v); }
inline unsigned __float_as_uint(float v) { return bits_of<unsigned>(v); }

namespace ptx {

inline unsigned dynamic_shared() { return 0; }

inline void store_shared16(unsigned to, uint4 v) { memcpy(fibers::Block::current->shared(to, 16), &v, 16); }

inline void store_shared4(unsigned to, unsigned v) { memcpy(fibers::Block::current->shared(to, 4), &v, 4); }
inline unsigned load_shared4(unsigned from) {
  unsigned v;
  memcpy(&v, fibers::Block::current->shared(from, 4), 4);
  return v;
}

inline unsigned max_of_warp(unsigned v) {
  unsigned most;
  fibers::Block::current->meet_warp("redux", &v, &most, [](fibers::Fiber* lanes) {
    unsigned found = 0;
    for (int i = 0; i < 32; i++) found = std::max(found, *(const unsigned*)lanes[i].given);
    for (int i = 0; i < 32; i++) *(unsigned*)lanes[i].result = found;
  });
  return most;
}

inline void cp_async16(unsigned to, const void* from) {
  fibers::Block& block = *fibers::Block::current;
  if (uintptr_t(from) % 16) fibers::fail("cp.async: a wrong address");
  block.fiber().copies.push_back({block.shared(to, 16), from});
  block.fiber().open++;
  if (block.options.eager) memcpy(block.shared(to, 16), from, 16);
}

inline void cp_async_commit() {
  fibers::Fiber& f = fibers::Block::current->fiber();
  f.groups.push_back(f.open);
  f.open = 0;
}

template <int PENDING>
void cp_async_wait() {
  fibers::Fiber& f = fibers::Block::current->fiber();
  while (f.groups.size() > PENDING) {
    for (size_t i = 0; i < f.groups.front(); i++)
      if (!fibers::Block::current->options.eager) memcpy(f.copies[i].to, f.copies[i].from, 16);
    f.copies.erase(f.copies.begin(), f.copies.begin() + f.groups.front());
    f.groups.erase(f.groups.begin());
  }
}

inline void ldmatrix_x4(unsigned (&d)[4], unsigned row) {
  const void* address = fibers::Block::current->shared(row, 16);
  fibers::Block::current->meet_warp("ldmatrix", address, d, [](fibers::Fiber* lanes) {
    for (int matrix = 0; matrix < 4; matrix++)
      for (int lane = 0; lane < 32; lane++)
        memcpy((unsigned*)lanes[lane].result + matrix, (const char*)lanes[8 * matrix + lane / 4].given + lane % 4 * 4, 4);
  });
}

inline float2 unpack_bf16(unsigned pair) { return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)}; }
inline float2 unpack_fp16(unsigned pair) {
  return {float(bits_of<_Float16>(uint16_t(pair))), float(bits_of<_Float16>(uint16_t(pair >> 16)))};
}
inline unsigned bf16_of(float v) {
  const unsigned u = __float_as_uint(v);
  return v != v ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline unsigned pack_bf16(float first, float second) { return bf16_of(first) | bf16_of(second) << 16; }
inline unsigned pack_fp16(float first, float second) {
  return bits_of<uint16_t>(_Float16(first)) | unsigned(bits_of<uint16_t>(_Float16(second))) << 16;
}
inline float sin_approx(float x) { return std::sin(x); }
inline float exp2_approx(float x) { return std::exp2(x); }

struct Product {
  const unsigned* a;
  unsigned b[2];
};

// The fragments' layout is that of the PTX ISA, mma.m16n8k16.
template <float2 unpack(unsigned)>
void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const char* place) {
  const Product given{a, {b0, b1}};
  fibers::Block::current->meet_warp(place, &given, d, [](fibers::Fiber* lanes) {
    float left[16][16], right[8][16];
    for (int lane = 0; lane < 32; lane++) {
      const Product& p = *(const Product*)lanes[lane].given;
      const int g = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; r++) memcpy(&left[g + r % 2 * 8][2 * t + r / 2 * 8], &(const float2&)unpack(p.a[r]), 8);
      for (int r = 0; r < 2; r++) memcpy(&right[g][2 * t + r * 8], &(const float2&)unpack(p.b[r]), 8);
    }
    for (int lane = 0; lane < 32; lane++)
      for (int r = 0; r < 4; r++) {
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += left[lane / 4 + r / 2 * 8][k] * right[lane % 4 * 2 + r % 2][k];
        ((float*)lanes[lane].result)[r] += sum;
      }
  });
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  mma<unpack_bf16>(d, a, b0, b1, "mma of bf16");
}
inline void mma_fp16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  mma<unpack_fp16>(d, a, b0, b1, "mma of fp16");
}


// That of mma.m16n8k32: a register has 4 numbers of 8 bits in place of 2 of 16.
inline void mma_int8(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const Product given{a, {b0, b1}};
  fibers::Block::current->meet_warp("mma of int8", &given, d, [](fibers::Fiber* lanes) {
    int8_t left[16][32], right[8][32];
    for (int lane = 0; lane < 32; lane++) {
      const Product& p = *(const Product*)lanes[lane].given;
      const int g = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; r++) memcpy(&left[g + r % 2 * 8][4 * t + r / 2 * 16], &p.a[r], 4);
      for (int r = 0; r < 2; r++) memcpy(&right[g][4 * t + r * 16], &p.b[r], 4);
    }
    for (int lane = 0; lane < 32; lane++)
      for (int r = 0; r < 4; r++) {
        int sum = 0;
        for (int k = 0; k < 32; k++) sum += left[lane / 4 + r / 2 * 8][k] * right[lane % 4 * 2 + r % 2][k];
        ((int*)lanes[lane].result)[r] += sum;
      }
  });
}

}  // namespace ptx
