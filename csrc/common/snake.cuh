// x + inv_beta * sin(alpha * x)^2 in fp32, as kernels/snake.py computes it.
#pragma once
#include "vector.cuh"

// The sine's square has period pi. The nearest multiple is taken off in one fma, whose pi is 9e-8 too large: 1e-5 at
// the 127th, where the product's own rounding costs 1.5e-5. Then the hardware's approximation is as good as it gets.
__device__ __forceinline__ float snake_of(float x, float alpha, float inv_beta) {
  const float v = alpha * x;
  const float n = __fmaf_rn(v, 0.3183098861837907f, 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: no fraction is left
  const float s = ptx::sin_approx(__fmaf_rn(n, -3.141592653589793f, v));
  return __fmaf_rn(inv_beta, s * s, x);
}

// That of 8 neighbouring channels.
struct Wave {
  float alpha[8], inv_beta[8];

  __device__ __forceinline__ Wave(const float* alphas, const float* inv_betas) {
    load8(alphas, alpha);
    load8(inv_betas, inv_beta);
  }

  __device__ __forceinline__ void apply(float (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = snake_of(v[i], alpha[i], inv_beta[i]);
  }
};
