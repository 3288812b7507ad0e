// CUDA kernels of acefast.ops.apg (K08): guidance alone, and a sampler's step along it, each in one launch.
//
// Math    m <- (c - u) + momentum m;  A = sum m^2, C = sum c^2, P = sum m c over time, per song and channel
//         q = min(1, threshold / sqrt(A));  d = q m;  p = (q P / max(C, 1e-24)) c;  v = c + (scale - 1) (d - p + eta p)
// Tiling  two blocks per 256 frames x 16 channels of a song, as csrc/sampler_step.cu has them. The first writes m and
//         its tile's A, C and P, fp32 sums of 256; the second waits for all of its song's and adds those of its
//         channels, in fp64 and one order, so that the result never varies.
//         With omega three: the second writes v and the sum of v dt, the third waits for those
// Bytes   B * T * D * (3 c + u + 12): c, u and m in, m out; c and m in again, velocity out; or what a step moves more.
//         c and u stand for their itemsize. The sums, 3 / 256 of m, stay in L2
// Bound   memory beyond some 10 minutes of song, latency below
#include "common/mean.cuh"

constexpr int PARTS = THREADS / COLUMNS;  // that the tiles of a channel are added in

struct Shared {
  union {
    float warps[3][THREADS / 32][COLUMNS];  // sums of a warp's frames
    double parts[3][PARTS][COLUMNS];
    Warps of_mean;
  };
  float share[COLUMNS], q[COLUMNS];
  u32 ticket;
};

template <typename T>
struct Guidance {
  Rows<const T> c, u;
  const float* before;   // momentum, null before the first
  float* after;          // may be ``before``
  float* partials;       // [B, tiles of frames, 3, D]
  const float* numbers;  // scale, momentum, threshold, eta

  __device__ __forceinline__ float* sums(const Tile& tile, int along) const {
    return partials + (i64(tile.song) * ((tile.T + ROWS - 1) / ROWS) + along) * (3 * tile.D);
  }

  // A tile's momentum, A, C and P.
  __device__ __forceinline__ void begin(const Tile& tile, Shared& shared) const {
    Values cond, m, uncond, old;
    tile.load(c, tile.valid, cond);
    tile.load(u, tile.valid, uncond);
    if (before) tile.load(tile.packed(before), tile.valid, old);
    float own[3][4] = {};
#pragma unroll
    for (int i = 0; i < FRAMES; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        m[i][e] = sub(cond[i][e], uncond[i][e]);
        if (before) m[i][e] = add(m[i][e], mul(numbers[1], old[i][e]));
        own[0][e] += m[i][e] * m[i][e], own[1][e] += cond[i][e] * cond[i][e], own[2][e] += m[i][e] * cond[i][e];
      }
    tile.store(tile.packed(after), tile.valid, m);
#pragma unroll
    for (int k = 0; k < 3; k++) {
#pragma unroll
      for (int e = 0; e < 4; e++)
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) own[k][e] += shuffle_xor(own[k][e], lanes);
      if (threadIdx.x % 32 < 4) store4<float>(&shared.warps[k][threadIdx.x / 32][threadIdx.x % 4 * 4], own[k]);
    }
    __syncthreads();
    const int k = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    if (k < 3 && COLUMNS * tile.across + column < tile.D) {
      float sum = 0;
#pragma unroll
      for (int warp = 0; warp < THREADS / 32; warp++) sum += shared.warps[k][warp][column];
      sums(tile, tile.along)[k * tile.D + COLUMNS * tile.across + column] = sum;
    }
  }

  // What all of the song's tiles make of the block's channels; thread k * COLUMNS + c has channel c's sum k.
  __device__ __forceinline__ void reduce(const Tile& tile, Shared& shared) const {
    const int part = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS, channel = COLUMNS * tile.across + column;
    double own[3] = {};
    if (channel < tile.D)
      for (int along = part; along < (tile.T + ROWS - 1) / ROWS; along += PARTS)
#pragma unroll
        for (int k = 0; k < 3; k++) own[k] = add(own[k], double(sums(tile, along)[k * tile.D + channel]));
#pragma unroll
    for (int k = 0; k < 3; k++) shared.parts[k][part][column] = own[k];
    __syncthreads();
    if (part == 0) {
#pragma unroll
      for (int k = 0; k < 3; k++) {
        own[k] = shared.parts[k][0][column];
        for (int i = 1; i < PARTS; i++) own[k] = add(own[k], shared.parts[k][i][column]);
      }
      const float threshold = numbers[2], norm = float(root(own[0]));
      const float q = threshold > 0 ? div(threshold, fmaxf(norm, threshold)) : 1.0f;
      shared.q[column] = q;
      shared.share[column] = float(mul(div(own[2], fmax(own[1], 1e-24)), double(q)));
    }
    __syncthreads();
  }

  // The guided velocity in place of the conditional one.
  __device__ __forceinline__ void guide(const Tile& tile, Shared& shared, Values& v) const {
    Values m;
    tile.load(tile.packed(const_cast<const float*>(after)), tile.valid, m);
    reduce(tile, shared);
    const int first = threadIdx.x % 4 * 4;
    const float more = sub(numbers[0], 1.0f), eta = numbers[3];
#pragma unroll
    for (int i = 0; i < FRAMES; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float parallel = mul(v[i][e], shared.share[first + e]);
        const float update = add(sub(mul(m[i][e], shared.q[first + e]), parallel), mul(eta, parallel));
        v[i][e] = add(v[i][e], mul(more, update));
      }
  }
};

// A block's place in a launch of so many stages; ``counters``: 1 + B of turns.cuh.
struct Turn {
  const u32 blocks, ticket, stage;
  __device__ __forceinline__ Turn(int stages, u32* counters, Shared& shared)
      : blocks(gridDim.x / stages), ticket(take_ticket(counters, gridDim.x, &shared.ticket)), stage(ticket / blocks) {}
};

// Grid: the tiles twice.
template <typename T>
__device__ __forceinline__ void apg(const Guidance<T>& g, const Rows<T>& out, u32* counters, const u32* lengths,
                                    int words, int T_, int D) {
  Shared& shared = *ptx::shared_memory<Shared>();
  const Turn turn(2, counters, shared);
  const Tile tile(turn.ticket % turn.blocks, lengths, words, T_, D);
  u32* const done = counters + 1 + tile.song;
  if (turn.stage == 0) {
    g.begin(tile, shared);
  } else {
    Values v;
    tile.load(g.c, tile.valid, v);
    wait_for(done, tile.tiles);
    g.guide(tile, shared, v);
    tile.store(out, tile.valid, v);
  }
  hand_over(done, 2 * tile.tiles);
}

// Grid: the tiles twice; with ``omega`` three times, and ``velocity`` [B, T, D] and ``sums`` [B, tiles] are written.
template <typename T>
__device__ __forceinline__ void apg_step(const Guidance<T>& g, const Step<T>& s, const float* omega, float* velocity,
                                         double* sums, u32* counters, const u32* lengths, int words, int T_, int D) {
  Shared& shared = *ptx::shared_memory<Shared>();
  const int stages = omega ? 3 : 2;
  const Turn turn(stages, counters, shared);
  const Tile tile(turn.ticket % turn.blocks, lengths, words, T_, D);
  u32* const done = counters + 1 + tile.song;
  if (turn.stage == 0) {
    g.begin(tile, shared);
  } else {
    const int step = s.read(tile);
    Values v, x;
    float mean = 0;
    if (turn.stage == 1) {
      tile.load(g.c, tile.valid, v);
      if (!omega) tile.load(s.x, T_, x);
      wait_for(done, tile.tiles);
      g.guide(tile, shared, v);
      if (omega) {
        tile.store(tile.packed(velocity), tile.valid, v);
        __syncthreads();  // the mean's shared memory is the reduction's
        sum_changes(s, tile, step, v, sums, shared.of_mean);
      }
    } else {
      tile.load(s.x, T_, x);
      wait_for(done, 2 * tile.tiles);
      tile.load(tile.packed(const_cast<const float*>(velocity)), tile.valid, v);
      mean = mean_of_song(tile, sums, shared.of_mean);
    }
    if (turn.stage == stages - 1) s.take(tile, step, x, v, omega, mean);
  }
  hand_over(done, stages * tile.tiles);
}

#define GUIDANCE(T)                                                                                                 \
  const T *c, i64 c_song, i64 c_frame, const T *u, i64 u_song, i64 u_frame, const float *before, float *after,      \
      float *partials, const float *numbers
#define ENTRY(name, T)                                                                                              \
  extern "C" __global__ __launch_bounds__(THREADS) void name(                                                       \
      GUIDANCE(T), T* out, i64 out_song, i64 out_frame, const u32* lengths, int words, u32* counters, int frames,   \
      int channels) {                                                                                               \
    apg<T>({{c, c_song, c_frame}, {u, u_song, u_frame}, before, after, partials, numbers},                          \
           {out, out_song, out_frame}, counters, lengths, words, frames, channels);                                 \
  }
ENTRY(apg_bf16, bf16)
ENTRY(apg_fp16, fp16)
ENTRY(apg_fp32, float)
#undef ENTRY
#define ENTRY(name, T)                                                                                              \
  extern "C" __global__ __launch_bounds__(THREADS) void name(                                                       \
      GUIDANCE(T), const float* x, i64 x_song, i64 x_frame, float* out, i64 out_song, i64 out_frame, T* copy,       \
      i64 copy_song, i64 copy_frame, const float* times, int step, int* clock, const float* noise,                  \
      const u64* seeds, const unsigned char* mask, const float* source, const float* initial, const int* held,      \
      const u32* lengths, int words, const float* omega, float* velocity, double* sums, u32* counters, int frames,  \
      int channels) {                                                                                               \
    const Step<T> s{{x, x_song, x_frame}, {out, out_song, out_frame}, {copy, copy_song, copy_frame},                \
                    times, step, clock, noise, seeds, mask, source, initial, held};                                 \
    apg_step<T>({{c, c_song, c_frame}, {u, u_song, u_frame}, before, after, partials, numbers}, s, omega,           \
                velocity, sums, counters, lengths, words, frames, channels);                                        \
  }
ENTRY(apg_step_bf16, bf16)
ENTRY(apg_step_fp16, fp16)
ENTRY(apg_step_fp32, float)
