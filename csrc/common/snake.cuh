// x + inv_beta * sin(alpha * x)^2 in fp32, as kernels/snake.py computes it.
#pragma once

// The sine's square has period pi. The nearest multiple is taken off in one fma, whose pi is 9e-8 too large: 1e-5 at
// the 127th, where the product's own rounding costs 1.5e-5. Then the hardware's approximation is as good as it gets.
__device__ __forceinline__ float snake_of(float x, float alpha, float inv_beta) {
  const float v = alpha * x;
  const float n = __fmaf_rn(v, 0.3183098861837907f, 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: no fraction is left
  float s;
  asm("sin.approx.f32 %0, %1;" : "=f"(s) : "f"(__fmaf_rn(n, -3.141592653589793f, v)));
  return __fmaf_rn(inv_beta, s * s, x);
}
