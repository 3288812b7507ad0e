// The main loop of a GEMM by tiles: a block's sums [M, N] of a [M, K] and b [N, K], K contiguous in both. Or, if
// B_BY_K, of 16-bit numbers with b [K, N], N contiguous.
//
// Tiling  a warp has 64 x 64 of the sums. BYTES of every row of a and b at a time go through a ring of STAGES pieces of
//         shared memory by cp.async
// Loop    flat over K, without a mask. A warp's fragments are loaded one mma's K ahead, across the barrier between
//         pieces too
// Banks   the 16-byte chunks of a row are permuted by its number, so that neither a copy nor ldmatrix has a conflict
// Shape   a thread's share of 32 columns is 8 neighbours: it writes 16 bytes at a time (see ``column``). If B_BY_K it
//         has pairs of neighbours, and results go through shared memory (see ``write``)
//
// An operand has ``row(r)``, the address of the next BYTES of a tile's row r, and ``next()``, which goes on to those
// behind them. If B_BY_K, b is ``Columns``: a row is one of K, and a piece has as many as BYTES hold numbers.
#pragma once
#include "mma.cuh"
#include "vector.cuh"

// Rows of a matrix from its first row on, ``stride`` bytes apart.
template <int BYTES>
struct Matrix {
  const unsigned char* first;
  const int stride;

  __device__ __forceinline__ const unsigned char* row(int r) const { return first + r * stride; }
  __device__ __forceinline__ void next() { first += BYTES; }
};

// Columns of a matrix [K, N] from the first of a tile on, ``stride`` bytes from one of K to the next.
template <typename T, int BYTES>
struct Columns {
  const unsigned char* first;
  const int stride;

  __device__ __forceinline__ const unsigned char* row(int k) const { return first + k * stride; }
  __device__ __forceinline__ void next() { first += BYTES / int(sizeof(T)) * stride; }
};

// What a convolution has for a row: taps of channels, ``apart`` bytes beyond their own length from one to the next.
template <int BYTES>
struct Taps {
  const unsigned char* first;
  const int stride, steps, apart;  // bytes between rows; steps of a tap
  int left;                        // of this tap

  __device__ __forceinline__ const unsigned char* row(int r) const { return first + r * stride; }
  __device__ __forceinline__ void next() {
    first += BYTES;
    if (--left == 0) first += apart, left = steps;
  }
};

// An operand whose row ``last`` stands for all behind it.
template <typename Operand>
struct Clipped {
  Operand rows;
  const int last;

  __device__ __forceinline__ const unsigned char* row(int r) const { return rows.row(r < last ? r : last); }
  __device__ __forceinline__ void next() { rows.next(); }
};

template <typename T, int M, int N, int BYTES, int STAGES, bool B_BY_K = false>
struct TileGemm {
  static constexpr int THREADS = M / 64 * (N / 64) * 32;
  static constexpr int CHUNKS = BYTES / 16, SLICES = BYTES / 32;  // of a row of a piece; an mma's K is 32 bytes
  static constexpr int PIECE = (M + N) * BYTES;                   // rows of a, then of b
  static constexpr int WIDE = N * int(sizeof(T)), WIDE_CHUNKS = WIDE / 16, WIDE_PASS = THREADS / WIDE_CHUNKS;
  static_assert(!B_BY_K || (sizeof(T) == 2 && WIDE_PASS == 8 && M * WIDE <= STAGES * PIECE));

  struct Fragments {
    u32 a[4][4], b[4][4];  // [64, 32 bytes] of both
  };

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int own_rows = warp % (M / 64) * 64, own_columns = warp / (M / 64) * 64;  // the first of the warp
  u32 piece = ptx::dynamic_shared();                                                // that is being read
  Sum<T> sums[4][8][4];  // of rows 16 i + g and 16 i + g + 8, columns 8 j + 2 t and 8 j + 2 t + 1; 4 g + t is the lane
  Fragments fragments[2];

  // Where a row's chunk is, from the first row on. Eight rows in succession have it in the eight places of 128 bytes.
  static __device__ __forceinline__ constexpr u32 place(int row, int chunk) {
    return row * BYTES + ((chunk ^ (row / (128 / BYTES) % CHUNKS)) << 4);
  }

  // The same for a row of N: of b, if B_BY_K, or of results.
  static __device__ __forceinline__ constexpr u32 wide_place(int row, int chunk) {
    return row * WIDE + ((chunk ^ row % 8) << 4);
  }

  // Starts copying the next BYTES of both operands.
  template <typename A, typename B>
  __device__ __forceinline__ void copy(u32 to, A& a, B& b) const {
    constexpr int PASS = THREADS / CHUNKS;  // rows; at least 16
    const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
#pragma unroll
    for (int r = 0; r < M; r += PASS) ptx::cp_async16(to + place(first, chunk) + r * BYTES, a.row(first + r) + chunk * 16);
    if constexpr (B_BY_K) {
      const int first = threadIdx.x / WIDE_CHUNKS, chunk = threadIdx.x % WIDE_CHUNKS;
      const u32 own = to + M * BYTES + wide_place(first, chunk);
#pragma unroll
      for (int k = 0; k < BYTES / 2; k += WIDE_PASS)  // of row(first + k) each would need registers of its own
        ptx::cp_async16(own + k * WIDE, b.row(first) + i64(k) * b.stride + chunk * 16);
    } else {
#pragma unroll
      for (int c = 0; c < N; c += PASS) {  // column(first + c) has the bits of both
        const u32 own = place(column(first), chunk) ^ place(column(c % 32), 0);
        ptx::cp_async16(to + own + (M + c / 32 * 32) * BYTES, b.row(first + c) + chunk * 16);
      }
    }
    a.next(), b.next();
  }

  // Loads slice k of the piece.
  __device__ __forceinline__ void load(int k) {
    Fragments& f = fragments[k % 2];
    const u32 a = (piece + place(own_rows + lane % 16, lane / 16)) ^ (k << 5);
    const u32 rows_of_b = piece + M * BYTES;
    const u32 b = B_BY_K ? rows_of_b + wide_place(lane % 16, own_columns / 8 + lane / 16)
                         : (rows_of_b + place(own_columns + lane % 8 + lane / 16 * 8, lane / 8 % 2)) ^ (k << 5);
#pragma unroll
    for (int i = 0; i < 4; i++) ptx::ldmatrix_x4(f.a[i], a + i * 16 * BYTES);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if constexpr (B_BY_K)
        ptx::ldmatrix_x4_trans(f.b[j], (b ^ (j << 5)) + k * 16 * WIDE);
      else
        ptx::ldmatrix_x4(f.b[j], b + j * 16 * BYTES);
    }
  }

  // A piece's products, and the copy that takes its place, if COPY. Unless ``more`` it is the last.
  template <bool COPY, typename A, typename B>
  __device__ __forceinline__ void multiply(A& a, B& b, bool more) {
#pragma unroll
    for (int k = 0; k < SLICES; k++) {
      if (k + 1 < SLICES) {
        load(k + 1);
      } else {
        ptx::cp_async_wait<STAGES - 2>();  // the next piece
        __syncthreads();                   // is there from all threads, and nobody reads this one any more
        if (COPY) copy(piece, a, b);
        ptx::cp_async_commit();
        piece = piece == ptx::dynamic_shared() + (STAGES - 1) * PIECE ? ptx::dynamic_shared() : piece + PIECE;
        if (more) load(0);
      }
      const Fragments& f = fragments[k % 2];
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) mma<T>(sums[i][j], f.a[i], f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
    }
  }

  // All of the sums; a row of a and b is ``steps`` times BYTES. Shared memory is free when it returns.
  template <typename A, typename B>
  __device__ __forceinline__ void run(A a, B b, int steps) {
    for (int i = 0; i < STAGES; i++) {
      if (i < steps) copy(piece + i * PIECE, a, b);
      ptx::cp_async_commit();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] = 0;
    ptx::cp_async_wait<STAGES - 1>();
    __syncthreads();
    load(0);
    int step = 0;
#pragma unroll 1
    for (; step < steps - STAGES; step++) multiply<true>(a, b, true);
#pragma unroll 1
    for (; step < steps; step++) multiply<false>(a, b, step + 1 < steps);
  }

  // A thread's share of the sums is 8 channels from ``channel(q)`` on, of rows ``row(i)``; q < 2, i < 8.
  __device__ __forceinline__ int channel(int q) const { return own_columns + 32 * q + lane % 4 * 8; }
  __device__ __forceinline__ int row(int i) const { return own_rows + 8 * i + lane / 4; }
  __device__ __forceinline__ void share(int q, int i, Sum<T> (&v)[8]) const {
#pragma unroll
    for (int e = 0; e < 8; e++) v[e] = sums[i / 2][4 * q + e / 2][i % 2 * 2 + e % 2];
  }

  // If B_BY_K: the sums, rounded, to N columns of ``rows`` rows, of which the first M are written, ``stride`` apart.
  __device__ __forceinline__ void write(T* to, i64 stride, int rows) const {
    const u32 at = ptx::dynamic_shared() + wide_place(own_rows + lane / 4, own_columns / 8) + lane % 4 * 4;
    const int first = threadIdx.x / WIDE_CHUNKS, chunk = threadIdx.x % WIDE_CHUNKS;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = 0; i < 8; i++)
        ptx::store_shared4((at ^ (j << 4)) + i * 8 * WIDE,
                           pack2<T>(sums[i / 2][j][i % 2 * 2], sums[i / 2][j][i % 2 * 2 + 1]));
    __syncthreads();
    to += first * stride + chunk * 8;
#pragma unroll 4
    for (int r = 0; r < M; r += WIDE_PASS, to += WIDE_PASS * stride)
      if (first + r < rows)
        store16(to, ptx::load_shared16(ptx::dynamic_shared() + wide_place(first, chunk) + r * WIDE));
    __syncthreads();  // shared memory is free for another result
  }
};
