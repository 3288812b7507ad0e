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
#define gridDim (fibers::Block::current->grid)
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
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned places) {
  const uint64_t both = uint64_t(high) << 32 | low;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= unsigned(both >> 8 * (places >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
template <typename V>
V min(V a, V b) {
  return a < b ? a : b;
}
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }

template <typename To, typename From>
To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __uint_as_float(unsigned v) { return bits_of<float>(v); }
inline unsigned __float_as_uint(float v) { return bits_of<unsigned>(v); }

template <typename V>
struct Word {
  V v;
  int lane;  // whose word is wanted
};
template <typename V>
V __shfl_sync(unsigned, V v, int lane) {
  const Word<V> given{v, lane};
  V result;
  fibers::Block::current->meet_warp("shuffle", &given, &result, [](fibers::Fiber* lanes) {
    for (int i = 0; i < 32; i++)
      *(V*)lanes[i].result = ((const Word<V>*)lanes[((const Word<V>*)lanes[i].given)->lane].given)->v;
  });
  return result;
}
template <typename V>
V __shfl_xor_sync(unsigned mask, V v, int lanes) {
  return __shfl_sync(mask, v, threadIdx.x % 32 ^ lanes);
}
inline bool __any_sync(unsigned, bool v) {
  bool result;
  fibers::Block::current->meet_warp("vote", &v, &result, [](fibers::Fiber* lanes) {
    bool any = false;
    for (int i = 0; i < 32; i++) any |= *(const bool*)lanes[i].given;
    for (int i = 0; i < 32; i++) *(bool*)lanes[i].result = any;
  });
  return result;
}

namespace ptx {

inline unsigned dynamic_shared() { return 0; }

inline unsigned increment_release(unsigned* counter, unsigned last) {
  const unsigned before = *counter;
  *counter = before >= last ? 0 : before + 1;
  return before;
}
inline unsigned load_acquire(const unsigned* counter) { return *counter; }
inline void pause() { fibers::Block::current->sleep("a wait for other blocks"); }

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(fibers::Block::current->shared(0, 1));
}

inline void store_shared16(unsigned to, uint4 v) { memcpy(fibers::Block::current->shared(to, 16), &v, 16); }

inline uint4 load_shared16(unsigned from) {
  uint4 v;
  memcpy(&v, fibers::Block::current->shared(from, 16), 16);
  return v;
}
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
inline void cp_async16_zfill(unsigned to, const void* from, bool there) {
  static const uint4 zeros = {};
  cp_async16(to, there ? from : &zeros);
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
inline void ldmatrix_x4_trans(unsigned (&d)[4], unsigned row) {
  const void* address = fibers::Block::current->shared(row, 16);
  fibers::Block::current->meet_warp("ldmatrix.trans", address, d, [](fibers::Fiber* lanes) {
    for (int matrix = 0; matrix < 4; matrix++)
      for (int lane = 0; lane < 32; lane++)
        for (int half = 0; half < 2; half++)
          memcpy((char*)((unsigned*)lanes[lane].result + matrix) + 2 * half,
                 (const char*)lanes[8 * matrix + lane % 4 * 2 + half].given + lane / 4 * 2, 2);
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
