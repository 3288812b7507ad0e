// Products of a warp by 16-bit type: d += a b, [16, 8] += [16, 16] [16, 8], sums in fp32.
#pragma once
#include "types.cuh"

template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  ptx::mma_bf16(d, a, b0, b1);
}

template <>
__device__ __forceinline__ void mma<fp16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  ptx::mma_fp16(d, a, b0, b1);
}
