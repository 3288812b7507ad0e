// What becomes of a convolution's sums: its results, and how they are made.
#pragma once
#include "engine.h"

struct Results {
  bf16 *y, *waved;                // contiguous rows of `width` numbers; one of them may be null
  long width;
  const bf16* bias;               // of each column; may be null, as may all that follow
  const bf16 *residual, *total;   // like y
  float share;                    // y = share * (sum + bias + residual) + total
  const float *alpha, *inv_beta;  // of the snake that makes waved of y; where they are null that is SiLU
};
