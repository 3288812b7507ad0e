// Sums along rows that a block keeps in registers.
#pragma once
#include "warp.cuh"

// Sums of N values over all threads of a block, for all of them: lanes first, then its WARPS in their order, so that N
// does not change a bit. Once in a kernel. N * 4 bytes of dynamic shared memory for each warp.
template <int WARPS, int N>
__device__ __forceinline__ void block_sum(float (&v)[N]) {
  float* const of_warps = ptx::shared_memory<float>();
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = warp_sum(v[i]);
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < N; i++) of_warps[threadIdx.x / 32 * N + i] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; i++) {
    v[i] = of_warps[i];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) v[i] += of_warps[warp * N + i];
  }
}
