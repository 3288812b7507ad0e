// ACE-Step v1's position embedding of 16 channels, half a head's pairs or more: y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i],
// y[2i+1] = x[2i+1] cos[2i+1] + x[2i] sin[2i+1].
#pragma once
#include "vector.h"

namespace LEVEL {

inline f32 mix_pairs(f32 x, const float* cos, const float* sin) {
  typedef uint64_t u64 __attribute__((vector_size(64)));
  const u64 pairs = (u64)x, minus = 0x80000000 - u64{};
  const f32 other = (f32)(((pairs << 32) | (pairs >> 32)) ^ minus);  // the even channel's has its sign turned
  return x * load(cos) + other * load(sin);
}

}  // namespace LEVEL
