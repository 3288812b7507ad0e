// What the lanes of a warp tell each other; all 32 take part.
#pragma once
#include "ptx.cuh"

// The value of the lane whose number differs in these bits.
template <typename V>
__device__ __forceinline__ V shuffle_xor(V v, int lanes) {
  return __shfl_xor_sync(0xffffffffu, v, lanes);
}

// The sum over each LANES neighbours, a power of two; all of them get the same bits.
template <int LANES = 32>
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int lanes = LANES / 2; lanes; lanes /= 2) v += shuffle_xor(v, lanes);
  return v;
}

// The value of one lane: the compiler then knows that it is the warp's, and keeps what is made of it once.
template <typename V>
__device__ __forceinline__ V lane_of(V v, int lane) {
  return __shfl_sync(0xffffffffu, v, lane);
}

__device__ __forceinline__ bool any_lane(bool v) { return __any_sync(0xffffffffu, v); }
