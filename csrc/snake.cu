// CUDA kernel of acefast.ops.snake.
//
// Math    y = x + inv_beta * sin(alpha * x)^2, fp32, rounded once
// Tiling  a block has PASSES passes of as many rows of a song as its 256 threads cover, 16 bytes a thread; a thread
//         stays on its channels, whose alpha and inv_beta come through shared memory into registers, and has all its
//         loads under way before it computes
// Bytes   2 * B * L * C * itemsize: x in, y out; and the guards of y
// Bound   memory
#include "common/snake.cuh"
#include "common/vector.cuh"

constexpr int THREADS = 256, PASSES = 4;

// 8 or 4 fp32 of shared memory. Lanes that are four apart take halves in another order: else both want the same banks.
template <int N>
__device__ __forceinline__ void read_own(const float* from, float (&v)[N]) {
  const int other = N == 8 ? threadIdx.x / 4 % 2 : 0;
  float4 half[N / 4];
#pragma unroll
  for (int i = 0; i < N / 4; i++) half[i] = ((const float4*)from)[i ^ other];
#pragma unroll
  for (int i = 0; i < N / 4; i++) {
    const float4 p = N == 8 && other ? half[N / 4 - 1 - i] : half[i];
    v[4 * i] = p.x, v[4 * i + 1] = p.y, v[4 * i + 2] = p.z, v[4 * i + 3] = p.w;
  }
}

// x and y are at the first guard row of the first song, may be the same memory, and have `guard` rows around each
// song's L. Grid: passes over the rows, 1, songs. THREADS * 16 bytes are whole rows; 8 * C bytes of shared memory.
template <typename T>
__device__ __forceinline__ void snake(const T* x, const float* alpha, const float* inv_beta, T* y, i64 L, int C,
                                      int guard) {
  extern __shared__ float4 shared[];
  constexpr int N = PER_16_BYTES<T>;
  float* waves = (float*)shared;  // alpha [C], inv_beta [C]
  for (int c = threadIdx.x; c < C; c += THREADS) waves[c] = alpha[c], waves[C + c] = inv_beta[c];
  __syncthreads();
  const int chunks = C / N, step = THREADS / chunks;  // step: rows a pass
  const int chunk = threadIdx.x % chunks, own_row = threadIdx.x / chunks;
  float a[N], b[N];
  read_own<N>(waves + chunk * N, a);
  read_own<N>(waves + C + chunk * N, b);
  const i64 song = i64(blockIdx.z) * (L + 2 * guard) * C + chunk * N, first = i64(blockIdx.x) * PASSES * step;
  uint4 raw[PASSES];
#pragma unroll
  for (int i = 0; i < PASSES; i++) {
    const i64 row = first + i * step + own_row;
    if (row < L) raw[i] = *(const uint4*)(x + song + (guard + row) * C);
  }
#pragma unroll
  for (int i = 0; i < PASSES; i++) {
    const i64 row = first + i * step + own_row;
    if (row >= L) break;
    float v[N];
    unpack<T>(raw[i], v);
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = snake_of(v[j], a[j], b[j]);
    *(uint4*)(y + song + (guard + row) * C) = pack<T>(v);
  }
  const uint4 zeros = make_uint4(0, 0, 0, 0);
  const bool last = first + PASSES * step >= L;
  for (int row = own_row; row < guard; row += step) {
    if (first == 0) *(uint4*)(y + song + i64(row) * C) = zeros;
    if (last) *(uint4*)(y + song + (guard + L + row) * C) = zeros;
  }
}

#define ENTRY(name, T)                                                                                     \
  extern "C" __global__ __launch_bounds__(THREADS) void name(const T* x, const float* alpha,               \
                                                             const float* inv_beta, T* y, i64 L, int C,    \
                                                             int guard) {                                  \
    snake<T>(x, alpha, inv_beta, y, L, C, guard);                                                          \
  }
ENTRY(snake_bf16, bf16)
ENTRY(snake_fp16, fp16)
ENTRY(snake_fp32, float)
