// CUDA kernel of acefast.ops.quantize_rows (K14, the pass before an int8 product).
//
// Math    scale[r] = max(max |x[r]|, 2^-100) / 127, q = x * (1 / scale), rounded to nearest even; all in fp32
// Tiling  a block has a row, a thread up to PASSES times 8 neighbours of it, which stay in registers between the maximum
//         and the rounding
// Bytes   R * K * (itemsize + 1) + 4 * R: x in, q and scale out
// Bound   memory
#include "common/vector.cuh"

constexpr int PASSES = 4;

__device__ __forceinline__ u32 magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }  // NaN is the largest

// Four fp32 of at most 2^21 in magnitude, rounded, as signed bytes. A sum with 1.5 * 2^23 has no fraction, and its low
// byte is that of the integer.
__device__ __forceinline__ u32 bytes_of(const float* v, float factor) {
  u32 word[4];
#pragma unroll
  for (int i = 0; i < 4; i++) word[i] = __float_as_uint(__fadd_rn(__fmul_rn(v[i], factor), 12582912.0f));
  return __byte_perm(__byte_perm(word[0], word[1], 0x0040), __byte_perm(word[2], word[3], 0x0040), 0x5410);
}

// x and q are contiguous, K is a multiple of 8. Grid: rows. Threads: ``threads``, K / (8 * PASSES) and up to a warp's
// worth more; so many warps times 4 bytes of shared memory.
template <typename T>
__device__ __forceinline__ void quantize_rows(const T* x, int8* q, float* scale, int K) {
  const int warps = (K + 32 * 8 * PASSES - 1) / (32 * 8 * PASSES), threads = 32 * warps;
  x += i64(blockIdx.x) * K, q += i64(blockIdx.x) * K;
  float v[PASSES][8];
#pragma unroll
  for (int p = 0; p < PASSES; p++) {
    const int k = (threadIdx.x + p * threads) * 8;
#pragma unroll
    for (int e = 0; e < 8; e++) v[p][e] = 0;
    if (k < K) load8(x + k, v[p]);
  }
  u32 most = __float_as_uint(7.888609052210118e-31f);  // 2^-100; the order of magnitudes is that of their bits
#pragma unroll
  for (int p = 0; p < PASSES; p++)
#pragma unroll
    for (int e = 0; e < 8; e++) most = most > magnitude(v[p][e]) ? most : magnitude(v[p][e]);
  const int lane = threadIdx.x % 32;
  const u32 of_warps = ptx::dynamic_shared();
  ptx::store_shared4(of_warps + threadIdx.x / 32 * 4, ptx::max_of_warp(most));
  __syncthreads();
  most = ptx::max_of_warp(lane < warps ? ptx::load_shared4(of_warps + lane * 4) : 0);

  const float own = __fmul_rn(__uint_as_float(most), 0.007874015748031496f), factor = __frcp_rn(own);  // 1 / 127
  if (threadIdx.x == 0) scale[blockIdx.x] = own;
#pragma unroll
  for (int p = 0; p < PASSES; p++) {
    const int k = (threadIdx.x + p * threads) * 8;
    if (k < K) *reinterpret_cast<uint2*>(q + k) = make_uint2(bytes_of(v[p], factor), bytes_of(v[p] + 4, factor));
  }
}

#define ENTRY(name, T)                                                                                 \
  extern "C" __global__ __launch_bounds__(1024) void name(const T* x, int8* q, float* scale, int K) {  \
    quantize_rows(x, q, scale, K);                                                                     \
  }
ENTRY(quantize_rows_bf16, bf16)
ENTRY(quantize_rows_fp16, fp16)
ENTRY(quantize_rows_fp32, float)
