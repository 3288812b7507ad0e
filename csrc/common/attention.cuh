// Attention of a tile: 128 rows of q, positions of a song with all heads that share a key head, head after head.
//
// Math    softmax(scale q k^T) v over the keys from i - window to i + window, i the row's position, before ``length``.
//         Sums, maxima and exponentials of 2 in fp32; weights are rounded before they multiply v
// Tiling  4 warps of 32 rows. q stays in registers, weights too: sums of scores lie as mma wants its left operand. Keys
//         and values come through a ring of STAGES pieces of KEYS, with one barrier each, and are used SLICE at a time:
//         a warp leaves out slices that none of its rows sees, and compares where not every row sees every key
// Maxima  a row's exponents are taken from its largest score so far, but from the one before while it is less than 2^8
//         times as large: sums are seldom scaled anew. Weights stay below 2^8, which fp16 holds
// Banks   the 16-byte chunks of a row are permuted by its number: no access has a conflict
#pragma once
#include "mma.cuh"
#include "vector.cuh"
#include "warp.cuh"

template <typename T>
struct Attention {
  static constexpr int D = 128, ROWS = 128, THREADS = 128, KEYS = 32, STAGES = 3, SLICE = 16;
  static constexpr int ROW = D * sizeof(T), PIECE = 2 * KEYS * ROW;  // bytes; keys, then values
  static constexpr int CHUNKS = ROW / 16, PASS = THREADS / CHUNKS;  // of a row; rows of all threads
  static constexpr float HIDDEN = -1e30f, LOWEST = -1e20f, GROWTH = 8;  // 2^(scale HIDDEN - LOWEST) is 0
  static_assert(ROWS * ROW <= (STAGES - 1) * PIECE && PASS % 8 == 0);  // q and the result pass through the ring

  const int group_bits;  // 2^group_bits heads share the key head
  const int start;       // the tile's first position
  const int window, length;
  const float scale;  // positive; includes log2(e)
  const u32 ring = ptx::dynamic_shared();
  const int lane = threadIdx.x % 32;
  const int own = lane_of(threadIdx.x / 32 * 32, 0);  // the warp's first row
  u32 q[D / 16][2][4];      // [32, 16] of the warp's rows at a time
  float sums[2][D / 8][4];  // of rows 16 i + g and 16 i + g + 8, columns 8 j + 2 t and 8 j + 2 t + 1; lane 4 g + t
  float high[2][2], total[2][2];  // of these rows: where exponents are taken from; the thread's share of the weights

  using Scores = float[2][SLICE / 8][4];  // of these rows; columns are keys

  __device__ __forceinline__ Attention(int group_bits, int window, int length, float scale)
      : group_bits(group_bits),
        start(blockIdx.x * (ROWS >> group_bits)),
        window(window),
        length(length),
        scale(scale) {}

  // A row's position, and its head in the group; the first key that a position sees, and the one behind all of them.
  __device__ __forceinline__ int position(int row) const { return start + (row >> group_bits); }
  __device__ __forceinline__ int head(int row) const { return row & ((1 << group_bits) - 1); }
  __device__ __forceinline__ int from(int i) const { return i > window ? i - window : 0; }
  __device__ __forceinline__ int to(int i) const { return length - i > window ? i + window + 1 : length; }

  static __device__ __forceinline__ constexpr u32 place(int row, int chunk) {
    return row * ROW + ((chunk ^ (row & 7)) << 4);
  }

  // Starts copying KEYS keys and values from ``key`` on, zeros from ``length`` on; nothing from ``end`` on.
  __device__ __forceinline__ void copy(u32 piece, const T* k, const T* v, int k_row, int v_row, int key,
                                       int end) const {
    const int chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
    if (key < end) {
#pragma unroll
      for (int r = 0; r < KEYS; r += PASS) {
        const int row = key + first + r;
        const u32 at = piece + place(first, chunk) + r * ROW;
        ptx::cp_async16_zfill(at, k + i64(row) * k_row + chunk * 8, row < length);
        ptx::cp_async16_zfill(at + KEYS * ROW, v + i64(row) * v_row + chunk * 8, row < length);
      }
    }
    ptx::cp_async_commit();
  }

  // Calls give(n, row, chunk) for the warp's rows, two at a time.
  template <typename Give>
  __device__ __forceinline__ void each_chunk(Give give) const {
#pragma unroll
    for (int n = 0; n < 16; n++) give(n, own + 2 * n + lane / CHUNKS, lane % CHUNKS);
  }

  // The warp's rows of q to shared memory, each as ``prepare`` leaves it; zeros for positions that are not ``live``.
  template <typename Prepare>
  __device__ __forceinline__ void bring(u32 rows, const T* q, int q_row, int live, Prepare prepare) const {
    uint4 raw[16];
    each_chunk([&](int n, int row, int chunk) {
      const T* from = q + i64(position(row)) * q_row + head(row) * D + chunk * 8;
      raw[n] = position(row) < live ? load16(from) : make_uint4(0, 0, 0, 0);
    });
    each_chunk([&](int n, int row, int chunk) { ptx::store_shared16(rows + place(row, chunk), prepare(raw[n])); });
  }

  __device__ __forceinline__ void take(u32 rows) {
    const u32 at = rows + place(own + lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < D / 16; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) ptx::ldmatrix_x4(q[n][i], (at ^ (n << 5)) + i * 16 * ROW);
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int h = 0; h < 2; h++) high[i][h] = LOWEST, total[i][h] = 0;
#pragma unroll
      for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] = 0;
    }
  }

  // What scores of keys from ``key`` on are added to: 0, or so little that hidden keys have no weight.
  __device__ __forceinline__ void hide(Scores& s, int key) const {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int p = position(own + 16 * i + 8 * h + lane / 4), first = from(p);
        const u32 seen = to(p) - first;
#pragma unroll
        for (int j = 0; j < SLICE / 8; j++)
#pragma unroll
          for (int e = 0; e < 2; e++)
            s[i][j][2 * h + e] = u32(key + 8 * j + lane % 4 * 2 + e - first) < seen ? 0 : HIDDEN;
      }
  }

  // Adds the scores.
  __device__ __forceinline__ void score(Scores& s, u32 keys) const {
    const u32 at = keys + place(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    u32 k[2][4];
    ptx::ldmatrix_x4(k[0], at);
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      if (n + 1 < D / 16) ptx::ldmatrix_x4(k[(n + 1) % 2], at ^ ((n + 1) << 5));
#pragma unroll
      for (int i = 0; i < 2; i++) {
        mma<T>(s[i][0], q[n][i], k[n % 2][0], k[n % 2][1]);
        mma<T>(s[i][1], q[n][i], k[n % 2][2], k[n % 2][3]);
      }
    }
  }

  // Takes a row's exponents from its largest, of which each thread has its own ``most``, if that has grown by GROWTH.
  __device__ __forceinline__ void raise(const float (&most)[2][2]) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float largest = fmaxf(most[i][h], shuffle_xor(most[i][h], 1));
        largest = fmaxf(largest, shuffle_xor(largest, 2));
        if (!(largest > high[i][h] + GROWTH)) largest = high[i][h];
        const float shrink = ptx::exp2_approx(high[i][h] - largest);
        high[i][h] = largest;
        total[i][h] *= shrink;
#pragma unroll
        for (int j = 0; j < D / 8; j++) sums[i][j][2 * h] *= shrink, sums[i][j][2 * h + 1] *= shrink;
      }
  }

  // Scores to weights.
  __device__ __forceinline__ void weigh(Scores& s) {
    float most[2][2];
    bool grown = false;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float pairs[2] = {fmaxf(s[i][0][2 * h], s[i][0][2 * h + 1]), fmaxf(s[i][1][2 * h], s[i][1][2 * h + 1])};
        most[i][h] = fmaxf(pairs[0], pairs[1]) * scale;
        grown |= most[i][h] > high[i][h] + GROWTH;
      }
    if (any_lane(grown)) raise(most);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < SLICE / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          s[i][j][e] = ptx::exp2_approx(__fmaf_rn(s[i][j][e], scale, -high[i][e / 2]));
          total[i][e / 2] += s[i][j][e];
        }
  }

  // Adds the weighted values.
  __device__ __forceinline__ void add(const Scores& s, u32 values) {
    const u32 at = values + place(lane % 16, lane / 16);
    u32 weights[2][4], v[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int r = 0; r < 4; r++) weights[i][r] = pack2<T>(s[i][r / 2][r % 2 * 2], s[i][r / 2][r % 2 * 2 + 1]);
    ptx::ldmatrix_x4_trans(v[0], at);
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      if (n + 1 < D / 16) ptx::ldmatrix_x4_trans(v[(n + 1) % 2], at ^ ((n + 1) << 5));
#pragma unroll
      for (int i = 0; i < 2; i++) {
        mma<T>(sums[i][2 * n], weights[i], v[n % 2][0], v[n % 2][1]);
        mma<T>(sums[i][2 * n + 1], weights[i], v[n % 2][2], v[n % 2][3]);
      }
    }
  }

  // SLICE keys from ``key`` on, which lie at ``keys``, their values KEYS rows on.
  __device__ __forceinline__ void slice(int key, u32 keys, int live) {
    const int low = position(own), top = position(own + 31);  // of the warp's rows
    if (low >= live || key >= to(top) || key + SLICE <= from(low)) return;
    Scores s = {};
    if (key < from(top) || key + SLICE > to(low)) hide(s, key);
    score(s, keys);
    weigh(s);
    add(s, keys + KEYS * ROW);
  }

  // The sums over the weights' total, to ``rows`` positions of out through shared memory; zeros where not ``live``.
  __device__ __forceinline__ void finish(T* out, int out_row, int live, int rows) const {
    const u32 at = ring + place(own + lane / 4, 0) + lane % 4 * 4;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = 16 * i + 8 * h;
        float weight = total[i][h] + shuffle_xor(total[i][h], 1);
        weight += shuffle_xor(weight, 2);
        const float share = position(own + row + lane / 4) < live && weight > 0 ? __fdividef(1, weight) : 0;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
          ptx::store_shared4((at ^ (j << 4)) + row * ROW,
                             pack2<T>(sums[i][j][2 * h] * share, sums[i][j][2 * h + 1] * share));
      }
    __syncthreads();
    each_chunk([&](int, int row, int chunk) {
      T* to = out + i64(position(row)) * out_row + head(row) * D + chunk * 8;
      if (position(row) < rows) store16(to, ptx::load_shared16(ring + place(row, chunk)));
    });
  }

  // All of it. q and out are at the group's first head of the song's first row, k and v at the key head of the first;
  // q_row and so on are elements from row to row. Of ``rows`` positions those that are not ``live`` become zeros.
  template <typename Prepare>
  __device__ __forceinline__ void run(const T* q, const T* k, const T* v, T* out, int q_row, int k_row, int v_row,
                                      int out_row, int live, int rows, Prepare prepare) {
    const int first = from(start), end = start < live ? to(position(ROWS - 1)) : first;
    copy(ring, k, v, k_row, v_row, first, end);
    bring(ring + PIECE, q, q_row, live, prepare);
    __syncthreads();
    take(ring + PIECE);
    __syncthreads();
    copy(ring + PIECE, k, v, k_row, v_row, first + KEYS, end);
    begin();
    u32 piece = ring, before = ring + (STAGES - 1) * PIECE;
#pragma unroll 1
    for (int key = first; key < end; key += KEYS) {
      ptx::cp_async_wait<STAGES - 2>();  // this piece
      __syncthreads();                   // is there from all threads, and nobody reads the one before any more
      copy(before, k, v, k_row, v_row, key + (STAGES - 1) * KEYS, end);
#pragma unroll 1
      for (int n = 0; n < KEYS; n += SLICE) slice(key + n, piece + n * ROW, live);
      before = piece;
      piece = piece == ring + (STAGES - 1) * PIECE ? ring : piece + PIECE;
    }
    __syncthreads();
    finish(out, out_row, live, rows);
  }
};
