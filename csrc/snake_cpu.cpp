// Snake on a CPU.
//
// Math     y = x + inv_beta[c] sin(alpha[c] x)**2                                                     fp32, rounded once
// Tiling   a thread takes whole rows, about 32 K numbers at a time
// Bytes    x in, y out
// Bound    arithmetic in cache, about 35 instructions for 16 numbers; else memory
#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace LEVEL {

void snake(const bf16* x, long rows, long C, const float* alpha, const float* inv_beta, bf16* y, int threads) {
  const long share = std::max(1L, (1L << 15) / C);
  in_parallel((rows + share - 1) / share, threads, [&](long i) {
    for (long row = i * share; row < std::min(rows, i * share + share); row++)
      for (long c = 0; c < C; c += LANES)
        store(y + row * C + c, snake(load(x + row * C + c), load(alpha + c), load(inv_beta + c)));
  });
}

}  // namespace LEVEL
