// CUDA kernels of test_ptx_nvcc.py: what nvcc makes of warp reductions, device functions, switches and inline PTX.
#include <cuda_bf16.h>
#include <cstdint>

// y = x / sqrt(mean(x^2) + eps), one block of 256 threads per row of D floats
__global__ void rmsnorm(const float* __restrict__ x, float* __restrict__ y, int D, float eps) {
  __shared__ float partial[8];
  const float* row = x + size_t(blockIdx.x) * D;
  float sum = 0;
  for (int i = threadIdx.x; i < D; i += 256) sum += row[i] * row[i];
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int j = 0; j < 8; j++) sum += partial[j];
  const float scale = rsqrtf(sum / D + eps);
  for (int i = threadIdx.x; i < D; i += 256) y[size_t(blockIdx.x) * D + i] = row[i] * scale;
}

// C [16, 8] = A [16, 32] B [32, 8] of bf16; B stored as [8, 32]; one warp, cp.async, ldmatrix, mma
__global__ void small_matmul(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  __shared__ __align__(128) __nv_bfloat16 sa[16 * 32], sb[8 * 32];
  const int lane = threadIdx.x;
  auto address = [](const void* p) { return uint32_t(__cvta_generic_to_shared(p)); };
  for (int i = lane; i < 64 + 32; i += 32) {
    const void* from = i < 64 ? a + i * 8 : b + (i - 64) * 8;
    void* to = i < 64 ? sa + i * 8 : sb + (i - 64) * 8;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to)), "l"(from) : "memory");
  }
  asm volatile("cp.async.commit_group;\n cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  float d[4] = {};
  for (int k = 0; k < 32; k += 16) {
    uint32_t fa[4], fb[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                 : "r"(address(sa + lane % 16 * 32 + k + lane / 16 * 8)));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(fb[0]), "=r"(fb[1])
                 : "r"(address(sb + lane % 8 * 32 + k + lane / 8 % 2 * 8)));
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
  }
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

__device__ __noinline__ float shifted_root(float x, int n) { return sqrtf(fabsf(x)) + n; }

// a call that is not inlined, a switch, double, long division, votes and an integer atomic
__global__ void mixed(const float* x, double* y, unsigned* positive, long long n, long long divisor) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  const bool live = i < n;
  const float v = live ? x[i] : -1.f;
  const unsigned votes = __ballot_sync(0xffffffffu, v > 0);
  if (threadIdx.x % 32 == 0) atomicAdd(positive, __popc(votes));
  if (!live) return;
  double r = shifted_root(v, int(i % divisor));
  switch (i % 7) {
    case 0: r += 1; break;
    case 1: r *= 2; break;
    case 2: r = -r; break;
    case 3: r /= 3; break;
    case 4: r = r * r; break;
    case 5: r = 1 / (r + 1); break;
    default: r = 0;
  }
  y[i] = r + sinf(v);
}
