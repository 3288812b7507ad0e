// CUDA kernel of acefast.ops.residual_unit (K10): a whole unit, its first snake and the next layer's, from x alone.
//
// Math    h = snake2(conv7_d(snake1(x)) + b1), both snakes rounded; y = x + W2 h + b2; snake_next(y) of the unrounded y.
//         Sums and epilogues in fp32
// Tiling  a block has ROWS rows of all C channels, a warp 64 x 64 of both products. snake1 of the rows and of 3 d more
//         on either side lies in shared memory and serves all seven taps; then h takes its place
// Loop    flat over 7 C of the first product and C of the second, KB at a time, without a mask. Weights come through a
//         ring of STAGES pieces; a warp's fragments are loaded one k16 ahead, across the barrier between pieces too
// Banks   the 16-byte chunks of a row are permuted by its number, so that neither ldmatrix nor a store has a conflict.
//         Products have their columns in an order in which a thread's share of 32 is 8 neighbours: it reads and writes
//         16 bytes at a time
// Flops   16 * B * L * C^2
// Bytes   (3 * B * L * C + 8 * C^2) * itemsize: x in, y, snake_next(y) out; 2 where one result is wanted
// Bound   tensor cores
#include "common/guarded.cuh"
#include "common/mma.cuh"
#include "common/snake.cuh"

constexpr int TAPS = 7;

template <typename T, int C, int ROWS, int KB, int STAGES>
struct ResidualUnit {
  static constexpr int THREADS = ROWS / 64 * (C / 64) * 32;
  static constexpr int CONV_STEPS = TAPS * C / KB, STEPS = CONV_STEPS + C / KB;  // of the loop
  static constexpr int K16 = KB / 16;                                            // of a step
  static constexpr int PIECE = C * KB * 2, ROW = C * 2;                          // bytes

  struct Fragments {
    u32 a[4][4], b[4][4];  // [64, 16] of rows and [16, 64] of weights
  };

  const T *weight1, *weight2;
  const int dilation;
  const u32 ring = ptx::dynamic_shared(), rows = ring + STAGES * PIECE;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int own_rows = warp % (ROWS / 64) * 64, own_columns = warp / (ROWS / 64) * 64;  // the first of the warp
  float sums[4][8][4];  // of rows 16 i + g and 16 i + g + 8, columns 8 j + 2 t and 8 j + 2 t + 1; 4 g + t is the lane
  Fragments fragments[2];

  __device__ __forceinline__ ResidualUnit(const T* weight1, const T* weight2, int dilation)
      : weight1(weight1), weight2(weight2), dilation(dilation) {}

  // A chunk's address among the rows. Eight rows in succession have it in eight places, and two neighbours have it in
  // different halves of 128 bytes: eight threads that store h have four chunks of each.
  __device__ __forceinline__ u32 chunk_of_row(int row, int chunk) const {
    return rows + row * ROW + ((chunk ^ ((row & 1) << 2 | (row >> 1 & 3))) << 4);
  }

  // A chunk's place in a piece of the ring: columns that share 128 bytes share a permutation.
  static __device__ __forceinline__ constexpr u32 chunk_of_column(int n, int chunk) {
    return n * KB * 2 + ((chunk ^ (n / (64 / KB) % (KB / 8))) << 4);
  }

  // Starts copying a step's weights, [C, KB], into its piece of the ring; past the last step nothing.
  template <bool CONV>
  __device__ __forceinline__ void copy_piece(int step) const {
    if (CONV)
      copy_weights<TAPS * C>(weight1 + step * KB, step);
    else if (step < STEPS)
      copy_weights<C>(weight2 + (step - CONV_STEPS) * KB, step);
    ptx::cp_async_commit();
  }

  template <int STRIDE>
  __device__ __forceinline__ void copy_weights(const T* weight, int step) const {
    constexpr int CHUNKS = KB / 8, PASS = THREADS / CHUNKS;
    const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const u32 to = ring + step % STAGES * PIECE + chunk_of_column(column(first), chunk);
    weight += first * STRIDE + chunk * 8;
#pragma unroll
    for (int c = 0; c < C; c += PASS)  // first < PASS: column(first + c) has the bits of both
      ptx::cp_async16((to ^ chunk_of_column(column(c % 32), 0)) + c / 32 * 32 * KB * 2, weight + c * STRIDE);
  }

  // Loads k16 number k of a step, whose rows are a tap's and whose first chunk of them is ``chunk``.
  __device__ __forceinline__ void load(Fragments& f, int step, int tap, int chunk, int k) const {
    const u32 a = chunk_of_row(own_rows + lane % 16 + tap * dilation, chunk + lane / 16) ^ (k << 5);
    const u32 piece = ring + step % STAGES * PIECE;
    const u32 b = (piece + chunk_of_column(own_columns + lane % 8 + lane / 16 * 8, lane / 8 % 2)) ^ (k << 5);
#pragma unroll
    for (int i = 0; i < 4; i++) ptx::ldmatrix_x4(f.a[i], a + i * 16 * ROW);
#pragma unroll
    for (int j = 0; j < 4; j++) ptx::ldmatrix_x4(f.b[j], b + j * 16 * KB * 2);
  }

  __device__ __forceinline__ void load(int step, int k) {
    const int tap = step < CONV_STEPS ? step * KB / C : 0;
    load(fragments[k % 2], step, tap, step * KB % C / 8, k);
  }

  // Before the first step of a product.
  __device__ __forceinline__ void begin(int step) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] = 0;
    load(step, 0);
  }

  // A step's products, and the copy of the piece STAGES on: CONV says that it is one of weight1. Unless ``more``, it is
  // a product's last step, and its rows are no longer read when it returns.
  template <bool CONV>
  __device__ __forceinline__ void multiply(int step, bool more) {
#pragma unroll
    for (int k = 0; k < K16; k++) {
      if (k + 1 < K16) {
        load(step, k + 1);
      } else {
        ptx::cp_async_wait<STAGES - 2>();  // the next piece
        __syncthreads();                   // is there from all threads, and nobody reads this one any more
        copy_piece<CONV>(step + STAGES);
        if (more) load(step + 1, 0);
      }
      const Fragments& f = fragments[k % 2];
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) mma<T>(sums[i][j], f.a[i], f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
    }
  }

  // snake1 of rows x[-3 d] to x[ROWS + 3 d) to shared memory; rows from ``readable`` on are beyond the guard.
  __device__ __forceinline__ void activate(const T* x, int readable, const float* alpha, const float* inv_beta) const {
    constexpr int CHUNKS = C / 8, PASS = THREADS / CHUNKS, FLIGHT = 8;
    const int reach = TAPS / 2 * dilation, chunk = threadIdx.x % CHUNKS, all = ROWS + 2 * reach;
    const Wave wave(alpha + chunk * 8, inv_beta + chunk * 8);
    x += chunk * 8 - reach * C;
    for (int first = threadIdx.x / CHUNKS; first < all; first += FLIGHT * PASS) {
      uint4 raw[FLIGHT];
#pragma unroll
      for (int i = 0; i < FLIGHT; i++) {
        const int row = first + i * PASS;
        raw[i] = row < all && row - reach < readable ? load16(x + row * C) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < FLIGHT; i++) {
        const int row = first + i * PASS;
        if (row < all) {
          float v[8];
          unpack<T>(raw[i], v);
          wave.apply(v);
          ptx::store_shared16(chunk_of_row(row, chunk), pack<T>(v));
        }
      }
    }
  }

  // A thread's share of the sums is 8 channels from ``channel(q)`` on, of rows ``row(i)``; q < 2, i < 8.
  __device__ __forceinline__ int channel(int q) const { return own_columns + 32 * q + lane % 4 * 8; }
  __device__ __forceinline__ int row(int i) const { return own_rows + 8 * i + lane / 4; }
  __device__ __forceinline__ void biased(int q, int i, const float (&bias)[8], float (&v)[8]) const {
#pragma unroll
    for (int e = 0; e < 8; e++) v[e] = sums[i / 2][4 * q + e / 2][i % 2 * 2 + e % 2] + bias[e];
  }

  // snake2 of the first product to shared memory, in place of the rows that it was made of.
  __device__ __forceinline__ void hide(const T* bias1, const float* alpha, const float* inv_beta) const {
#pragma unroll
    for (int q = 0; q < 2; q++) {
      const int c = channel(q);
      const Wave wave(alpha + c, inv_beta + c);
      float bias[8], v[8];
      unpack<T>(load16(bias1 + c), bias);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        biased(q, i, bias, v);
        wave.apply(v);
        ptx::store_shared16(chunk_of_row(row(i), c / 8), pack<T>(v));
      }
    }
  }

  // The second product and x to y, its snake to waved; rows from ``live`` on are beyond the song.
  __device__ __forceinline__ void finish(const T* x, const T* bias2, const float* alpha, const float* inv_beta, T* y,
                                         T* waved, int live) const {
#pragma unroll
    for (int q = 0; q < 2; q++) {
      const int c = channel(q);
      float bias[8];
      unpack<T>(load16(bias2 + c), bias);
      uint4 own[8];
#pragma unroll
      for (int i = 0; i < 8; i++) own[i] = row(i) < live ? load16(x + row(i) * C + c) : make_uint4(0, 0, 0, 0);
      auto result = [&](int i, float(&v)[8]) {
        float residual[8];
        unpack<T>(own[i], residual);
        biased(q, i, bias, v);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] += residual[e];
      };
      float v[8];
      if (y) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          result(i, v);
          if (row(i) < live) store16(y + row(i) * C + c, pack<T>(v));
        }
      }
      if (waved) {
        const Wave wave(alpha + c, inv_beta + c);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          result(i, v);
          wave.apply(v);
          if (row(i) < live) store16(waved + row(i) * C + c, pack<T>(v));
        }
      }
    }
  }
};

// x, y and waved are at the first guard row of the first song and have ``guard`` rows, at least 3 * dilation, around
// each song's L; y or waved may be null, neither is x. Grid: tiles of ROWS rows, 1, songs. Dynamic shared memory:
// (STAGES * KB + ROWS + 6 * dilation) * C * 2 bytes.
template <typename T, int C, int ROWS, int KB, int STAGES>
__device__ __forceinline__ void residual_unit(const T* x, const float* alpha1, const float* inv_beta1, const T* weight1,
                                              const T* bias1, const float* alpha2, const float* inv_beta2,
                                              const T* weight2, const T* bias2, const float* alpha,
                                              const float* inv_beta, T* y, T* waved, int L, int dilation, int guard) {
  using Unit = ResidualUnit<T, C, ROWS, KB, STAGES>;
  const int own = blockIdx.x * ROWS, live = L - own;
  const i64 song = (i64(blockIdx.z) * (L + 2 * guard) + guard) * C, start = song + i64(own) * C;
  Unit unit(weight1, weight2, dilation);
  for (int step = 0; step < STAGES; step++) unit.template copy_piece<true>(step);
  unit.activate(x + start, live + guard, alpha1, inv_beta1);
  ptx::cp_async_wait<STAGES - 1>();
  __syncthreads();

  int step = 0;
  unit.begin(step);
#pragma unroll 1
  for (; step < Unit::CONV_STEPS - STAGES; step++) unit.template multiply<true>(step, true);
#pragma unroll 1
  for (; step < Unit::CONV_STEPS; step++) unit.template multiply<false>(step, step + 1 < Unit::CONV_STEPS);
  unit.hide(bias1, alpha2, inv_beta2);
  __syncthreads();
  unit.begin(step);
#pragma unroll 1
  for (; step < Unit::STEPS; step++) unit.template multiply<false>(step, step + 1 < Unit::STEPS);

  unit.finish(x + start, bias2, alpha, inv_beta, y ? y + start : y, waved ? waved + start : waved, live);
  const bool first = own == 0, last = live <= ROWS;
  if (y) zero_guards<Unit::THREADS>(y + song, C, L, guard, first, last);
  if (waved) zero_guards<Unit::THREADS>(waved + song, C, L, guard, first, last);
}

// BLOCKS: on a multiprocessor, for which registers must suffice.
#define ENTRY(name, T, C, ROWS, KB, STAGES, BLOCKS)                                                                  \
  extern "C" __global__ __launch_bounds__(ROWS / 64 * (C / 64) * 32, BLOCKS) void name(                              \
      const T* x, const float* alpha1, const float* inv_beta1, const T* weight1, const T* bias1,                     \
      const float* alpha2, const float* inv_beta2, const T* weight2, const T* bias2, const float* alpha,             \
      const float* inv_beta, T* y, T* waved, int L, int dilation, int guard) {                                       \
    residual_unit<T, C, ROWS, KB, STAGES>(x, alpha1, inv_beta1, weight1, bias1, alpha2, inv_beta2, weight2, bias2,   \
                                          alpha, inv_beta, y, waved, L, dilation, guard);                            \
  }
ENTRY(residual_unit_c128_r128_bf16, bf16, 128, 128, 64, 2, 2)
ENTRY(residual_unit_c128_r128_fp16, fp16, 128, 128, 64, 2, 2)
ENTRY(residual_unit_c256_r128_bf16, bf16, 256, 128, 64, 2, 1)
ENTRY(residual_unit_c256_r128_fp16, fp16, 256, 128, 64, 2, 1)
ENTRY(residual_unit_c256_r64_bf16, bf16, 256, 64, 32, 2, 1)
ENTRY(residual_unit_c256_r64_fp16, fp16, 256, 64, 32, 2, 1)
