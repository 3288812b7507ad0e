// The mean over a song of what its blocks have values of: in fp64, in one order.
#pragma once
#include "sampler.cuh"
#include "turns.cuh"
#include "warp.cuh"

using Warps = double[THREADS / 32];  // shared memory

// Of all threads, for all threads.
__device__ __forceinline__ double block_sum(double v, Warps& warps) {
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) v = add(v, shuffle_xor(v, lanes));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  double sum = warps[0];
#pragma unroll
  for (int i = 1; i < THREADS / 32; i++) sum = add(sum, warps[i]);
  return sum;
}

// Writes a tile's sum of v dt; ``sums``: [B, tiles]. Tiles of later frames are last, so that a song's mean does not
// depend on frames behind its own.
template <typename T>
__device__ __forceinline__ void sum_changes(const Step<T>& of, const Tile& tile, int step, const Values& v, double* sums,
                                            Warps& warps) {
  double total = 0;
#pragma unroll
  for (int i = 0; i < FRAMES; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) total = add(total, double(of.change(step, v[i][e])));
  total = block_sum(total, warps);
  const int across = (tile.D + COLUMNS - 1) / COLUMNS;
  if (threadIdx.x == 0) sums[tile.song * tile.tiles + tile.along * across + tile.across] = total;
}

__device__ __forceinline__ float mean_of_song(const Tile& tile, const double* sums, Warps& warps) {
  double total = 0;
  for (int i = threadIdx.x; i < tile.tiles; i += THREADS) total = add(total, sums[tile.song * tile.tiles + i]);
  return float(div(block_sum(total, warps), double(tile.valid * tile.D)));
}
