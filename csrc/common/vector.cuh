// 16 bytes at a time: the widest access of a thread, and the values in it.
#pragma once
#include "types.cuh"

template <typename T>
constexpr int PER_16_BYTES = 16 / sizeof(T);

template <typename T>
__device__ __forceinline__ void unpack(uint4 raw, float (&v)[PER_16_BYTES<T>]) {
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 4) {
      v[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack2<T>(words[i]);
      v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
    }
  }
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float (&v)[PER_16_BYTES<T>]) {
  u32 words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 4)
      words[i] = __float_as_uint(v[i]);
    else
      words[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
__device__ __forceinline__ uint4 load16(const T* from) {
  return *reinterpret_cast<const uint4*>(from);
}

template <typename T>
__device__ __forceinline__ void store16(T* to, uint4 v) {
  *reinterpret_cast<uint4*>(to) = v;
}

// 4 neighbours, 8 bytes of 16-bit values or 16 of fp32: a warp fills its sectors with either, and both share a layout.
template <typename T>
__device__ __forceinline__ void load4(const T* from, float (&v)[4]) {
  if constexpr (sizeof(T) == 4) {
    const float4 raw = *reinterpret_cast<const float4*>(from);
    v[0] = raw.x, v[1] = raw.y, v[2] = raw.z, v[3] = raw.w;
  } else {
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    const float2 a = unpack2<T>(raw.x), b = unpack2<T>(raw.y);
    v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
  }
}

template <typename T>
__device__ __forceinline__ void store4(T* to, const float (&v)[4]) {
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
  else
    *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
}

// 8 neighbours, as fp32.
template <typename T>
__device__ __forceinline__ void load8(const T* from, float (&v)[8]) {
  unpack<T>(load16(from), v);
}

__device__ __forceinline__ void load8(const float* from, float (&v)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
