// Blocks of one launch that wait for what others write. A block waits for earlier tickets only, which have been taken
// by blocks that run, so that no number of blocks has to fit the GPU at once. A launch of several stages gives the
// first tickets to the first stage, and counts for each group of blocks how many have done their part.
//
// Counters, the ticket's and one for each group, are 0 before a launch and wrap to 0 with the last block that adds one,
// so that the next launch, a replayed graph's too, finds them as this one did. No other launch uses them meanwhile.
#pragma once
#include "types.cuh"

// 0 .. blocks - 1, in the order in which blocks come here; ``shared`` is of the block.
__device__ __forceinline__ u32 take_ticket(u32* counter, u32 blocks, u32* shared) {
  if (threadIdx.x == 0) *shared = ptx::increment_release(counter, blocks - 1);
  __syncthreads();
  return *shared;
}

// Counts this block as done, of ``blocks`` in its group; who waits then finds all that its threads have written.
__device__ __forceinline__ void hand_over(u32* counter, u32 blocks) {
  __syncthreads();
  if (threadIdx.x == 0) ptx::increment_release(counter, blocks - 1);
}

// Until ``enough`` of the group have handed over, which then do not all have.
__device__ __forceinline__ void wait_for(const u32* counter, u32 enough) {
  if (threadIdx.x == 0)
    while (ptx::load_acquire(counter) < enough) ptx::pause();
  __syncthreads();
}
