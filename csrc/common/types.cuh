// Names of sizes, storage types and their conversions. Nothing here or elsewhere in csrc/ includes a header of
// the toolkit: what nvcc compiles, NVRTC compiles without any folder to look in.
#pragma once
#include "ptx.cuh"

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct bf16 {
  u16 bits;
};
struct fp16 {
  u16 bits;
};
struct int8 {
  signed char bits;
};

// Two neighbours in memory, the first in the low half, as fp32 values.
template <typename T>
__device__ __forceinline__ float2 unpack2(u32 pair);

template <>
__device__ __forceinline__ float2 unpack2<bf16>(u32 pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <>
__device__ __forceinline__ float2 unpack2<fp16>(u32 pair) {
  return ptx::unpack_fp16(pair);
}

// The same back, each rounded to nearest even.
template <typename T>
__device__ __forceinline__ u32 pack2(float first, float second);

template <>
__device__ __forceinline__ u32 pack2<bf16>(float first, float second) {
  return ptx::pack_bf16(first, second);
}

template <>
__device__ __forceinline__ u32 pack2<fp16>(float first, float second) {
  return ptx::pack_fp16(first, second);
}
