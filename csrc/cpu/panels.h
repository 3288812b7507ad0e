// Weights as the engine reads them.
#pragma once
#include <algorithm>

#include "engine.h"
#include "parallel.h"

namespace LEVEL {

// Of a weight w[N, K] or its panels (acefast.panels): packed columns, those from block * 32 on at block times
// engine().packed(K). All of them are packed here unless panels lie so; they are there until this thread's next call.
inline const char* packed_columns(const bf16* w, bool panels, long N, long K, int threads) {
  static thread_local Scratch packed;
  const Engine& e = engine();
  if (panels && !e.pack_panel) return reinterpret_cast<const char*>(w);
  const long blocks = (N + COLUMNS - 1) / COLUMNS;
  char* b = packed.get<char>(blocks * e.packed(K));
  in_parallel(blocks, threads, [&](long block) {
    const bf16* from = w + block * COLUMNS * K;
    char* to = b + block * e.packed(K);
    if (panels)
      e.pack_panel(from, int(K), to);
    else
      e.pack_rows(from, K, int(std::min<long>(COLUMNS, N - block * COLUMNS)), int(K), to);
  });
  return b;
}

}  // namespace LEVEL
