// What the lanes of a warp tell each other; all 32 take part.
#pragma once
#include "ptx.cuh"

// The value of the lane whose number differs in these bits.
template <typename V>
__device__ __forceinline__ V shuffle_xor(V v, int lanes) {
  return __shfl_xor_sync(0xffffffffu, v, lanes);
}
