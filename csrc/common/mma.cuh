// Products of a warp by type: d += a b, [16, 8] += [16, K] [K, 8], where K is 32 bytes: 16 numbers of 16 bits, 32 of
// 8.
#pragma once
#include "types.cuh"

template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<int8> {
  using type = int;
};
template <typename T>
using Sum = typename SumOf<T>::type;

template <typename T>
__device__ __forceinline__ void mma(Sum<T> (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  ptx::mma_bf16(d, a, b0, b1);
}

template <>
__device__ __forceinline__ void mma<fp16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  ptx::mma_fp16(d, a, b0, b1);
}

template <>
__device__ __forceinline__ void mma<int8>(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  ptx::mma_int8(d, a, b0, b1);
}

// The column of a product that computes channel c, and the other way round: bits 1 and 2, bits 3 and 4 change places.
// A thread's share of 32 columns is then 8 neighbouring channels.
__device__ __forceinline__ constexpr int column(int c) { return (c & ~30) | (c & 6) << 2 | (c >> 2 & 6); }
