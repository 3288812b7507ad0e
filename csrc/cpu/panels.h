// Weights as the engine reads them.
#pragma once
#include <algorithm>

#include "engine.h"
#include "parallel.h"

namespace LEVEL {

// Of `count` weights w[N, K], one behind another, or their panels (acefast.panels): packed columns, those of weight m
// from block * 32 on at (m * blocks + block) * engine().packed(K). All of them are packed here unless panels lie so; they
// are there until this thread's next call.
inline const char* packed_columns(const bf16* w, bool panels, long count, long N, long K, int threads) {
  static thread_local Scratch packed;
  const Engine& e = engine();
  if (panels && !e.pack_panel) return reinterpret_cast<const char*>(w);
  const long blocks = (N + COLUMNS - 1) / COLUMNS;
  char* b = packed.get<char>(count * blocks * e.packed(K));
  in_parallel(count * blocks, threads, [&](long i) {
    const long column = i % blocks * COLUMNS;
    if (panels)
      e.pack_panel(w + i * COLUMNS * K, int(K), b + i * e.packed(K));
    else
      e.pack_rows(w + (i / blocks * N + column) * K, K, int(std::min<long>(COLUMNS, N - column)), int(K),
                  b + i * e.packed(K));
  });
  return b;
}

}  // namespace LEVEL
