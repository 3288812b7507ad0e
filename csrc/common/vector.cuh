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
