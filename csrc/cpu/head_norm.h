// RMSNorm of a head: what its numbers are multiplied by, besides the weight.
#pragma once
#include "vector.h"

namespace LEVEL {

inline float inverse_rms(const bf16* x, int D, float eps) {
  f32 squares{};
  for (int d = 0; d < D; d += LANES) squares += load(x + d) * load(x + d);
  return 1.0f / std::sqrt(sum(squares) / D + eps);
}

}  // namespace LEVEL
