// A sampler's step on a tile of [B, T, D], as kernels/sampler_step.py has it: the same bits.
#pragma once
#include "philox.cuh"
#include "vector.cuh"

constexpr int ROWS = 256, COLUMNS = 16, THREADS = 256;    // of a tile, and threads for it
constexpr int FRAMES = ROWS * COLUMNS / 4 / THREADS;      // of a thread, 4 neighbouring channels each
constexpr int SDE_STREAM = 1;                             // of step 0's noise

using Values = float[FRAMES][4];  // a thread's share of a tile

// [B, T, D] with neighbouring channels; strides in elements.
template <typename T>
struct Rows {
  T* data;
  i64 song, frame;
};

// Which frames and channels of which song a block works on, and which of them this thread does.
struct Tile {
  int index, tiles;          // its number, which is that of its entry in the clock; how many a song has
  int song, along, across;   // its place: frames from ROWS * along on, channels from COLUMNS * across on
  int T, D, column;
  int valid;  // frames that are the song's

  // ``lengths``: of so many 32-bit words each, the low one first; null: all are T.
  __device__ __forceinline__ Tile(int index, const u32* lengths, int words, int T, int D) : index(index), T(T), D(D) {
    const int of_frames = (T + ROWS - 1) / ROWS;
    tiles = of_frames * ((D + COLUMNS - 1) / COLUMNS);
    song = index / tiles, along = index % of_frames, across = index % tiles / of_frames;
    column = COLUMNS * across + threadIdx.x % 4 * 4;
    valid = lengths ? min(T, int(lengths[song * words])) : T;
  }

  __device__ __forceinline__ int frame(int i) const { return ROWS * along + threadIdx.x / 4 + THREADS / 4 * i; }
  __device__ __forceinline__ bool before(int i, int end) const { return column < D && frame(i) < end; }
  __device__ __forceinline__ bool live(int i) const { return before(i, valid); }

  template <typename V>
  __device__ __forceinline__ V* at(const Rows<V>& rows, int i) const {
    return rows.data + song * rows.song + frame(i) * rows.frame + column;
  }

  template <typename V>
  __device__ __forceinline__ Rows<V> packed(V* data) const {
    return {data, i64(T) * D, D};
  }

  // Frames up to ``end``, zeros beyond.
  template <typename V>
  __device__ __forceinline__ void load(const Rows<const V>& rows, int end, Values& v) const {
#pragma unroll
    for (int i = 0; i < FRAMES; i++) {
      v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
      if (before(i, end)) load4<V>(at(rows, i), v[i]);
    }
  }

  template <typename V>
  __device__ __forceinline__ void store(const Rows<V>& rows, int end, const Values& v) const {
#pragma unroll
    for (int i = 0; i < FRAMES; i++)
      if (before(i, end)) store4<V>(at(rows, i), v[i]);
  }
};

template <typename T>
struct Step {
  Rows<const float> x;
  Rows<float> out;
  Rows<T> copy;        // null: none
  const float* times;  // [steps, 4]: t, dt, t_next, 1 - t_next
  int number;          // of the step, where the clock is null
  int* clock;
  const float* noise;
  const u64* seeds;
  const unsigned char* mask;  // of a repaint, as are the next three
  const float *source, *initial;
  const int* held;

  __device__ __forceinline__ int read(const Tile& tile) const { return clock ? clock[1 + tile.index] : number; }

  __device__ __forceinline__ float change(int step, float v) const { return mul(v, times[4 * step + 1]); }

  // Latents at t_next in place of those at t; ``mean`` is of v dt, where omega is.
  __device__ __forceinline__ void advance(const Tile& tile, int step, const Values& v, const float* omega, float mean,
                                          Values& x) const {
    const float t_next = times[4 * step + 2], rest = times[4 * step + 3];
    const bool renoised = noise || seeds;
#pragma unroll
    for (int i = 0; i < FRAMES; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (renoised) {
          x[i][e] = sub(x[i][e], mul(v[i][e], times[4 * step]));
        } else {
          float d = change(step, v[i][e]);
          if (omega) d = add(mul(sub(d, mean), *omega), mean);
          x[i][e] = sub(x[i][e], d);
        }
      }
    if (renoised && t_next > 0) {
#pragma unroll
      for (int i = 0; i < FRAMES; i++) {
        if (!tile.live(i)) continue;
        float eps[4];
        if (seeds) {
          const u64 first = u64(tile.frame(i)) * tile.D + tile.column;
#pragma unroll
          for (int e = 0; e < 4; e++) eps[e] = normal(seeds[tile.song], step + SDE_STREAM, first + e);
        } else {
          load4<float>(tile.at(tile.packed(noise), i), eps);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) x[i][e] = add(mul(eps[e], t_next), mul(x[i][e], rest));
      }
    }
    if (mask && step < *held) {
#pragma unroll
      for (int i = 0; i < FRAMES; i++) {
        if (!tile.live(i) || mask[i64(tile.song) * tile.T + tile.frame(i)]) continue;
        float first[4], clean[4];
        load4<float>(tile.at(tile.packed(initial), i), first);
        load4<float>(tile.at(tile.packed(source), i), clean);
#pragma unroll
        for (int e = 0; e < 4; e++) x[i][e] = add(mul(first[e], t_next), mul(clean[e], rest));
      }
    }
  }

  // One tile's step: latents ``before`` along v, to ``out`` and the model's copy; then the clock goes on.
  __device__ __forceinline__ void take(const Tile& tile, int step, const Values& before, const Values& v,
                                       const float* omega, float mean) const {
    Values x;
#pragma unroll
    for (int i = 0; i < FRAMES; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) x[i][e] = before[i][e];
    advance(tile, step, v, omega, mean, x);
    if (copy.data) tile.store(copy, tile.valid, x);
#pragma unroll
    for (int i = 0; i < FRAMES; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) x[i][e] = tile.live(i) ? x[i][e] : before[i][e];
    tile.store(out, tile.T, x);
    if (clock) {
      __syncthreads();  // every warp has read the step
      if (threadIdx.x == 0) {
        clock[1 + tile.index] = step + 1;
        if (tile.index == 0) clock[0] = step + 1;  // which only later launches read
      }
    }
  }
};
