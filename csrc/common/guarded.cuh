// Rows between zeros, as acefast/guarded.py lays them: a song is guard + L + guard rows of C channels.
#pragma once
#include "vector.cuh"

// Writes zeros to the guard before a song's ``rows``, if ``first``, and to the one after them, if ``last``; all threads.
template <int THREADS, typename T>
__device__ __forceinline__ void zero_guards(T* rows, int C, int L, int guard, bool first, bool last) {
  const uint4 zeros = make_uint4(0, 0, 0, 0);
  for (int i = threadIdx.x * 8; i < guard * C; i += THREADS * 8) {
    if (first) store16(rows - guard * C + i, zeros);
    if (last) store16(rows + i64(L) * C + i, zeros);
  }
}
