#include "machine.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "engine.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

#ifndef BUILT  // the highest of Isa that the compiler knew
#define BUILT 0
#endif

const char* const ISA_NAMES[5] = {"portable", "avx2", "avx512", "bf16", "amx"};

namespace portable {
extern const Engine fp32_engine;
extern const Engine8 int8_engine;
}  // namespace portable
#if BUILT >= 1
namespace avx2 {
extern const Engine fp32_engine;
extern const Engine8 int8_engine;
}  // namespace avx2
#endif
#if BUILT >= 2
namespace avx512 {
extern const Engine fp32_engine;
extern const Engine8 int8_engine;
}  // namespace avx512
#endif
#if BUILT >= 3
extern const Engine bf16_engine;
extern const Engine8 vnni_engine;
#endif
#if BUILT >= 4
extern const Engine amx_engine;
extern const Engine8 amx8_engine;
void amx_rest();
#endif

namespace {

#if defined(__x86_64__)
struct Leaf {
  unsigned a, b, c, d;
  Leaf(unsigned leaf, unsigned sub) : a(0), b(0), c(0), d(0) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool bits(unsigned value, unsigned wanted) { return (value & wanted) == wanted; }

unsigned saved_by_system() {  // XCR0: registers that the operating system keeps for each program
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool amx_allowed() {  // Linux gives tiles to programs that ask: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

Isa found() {
  const Leaf one(1, 0), seven(7, 0), more(7, 1);
  if (!bits(one.c, 1u << 27)) return PORTABLE;  // no xgetbv
  const unsigned kept = saved_by_system();
  if (!bits(kept, 0x6) || !bits(one.c, 1u << 12 | 1u << 29) || !bits(seven.b, 1u << 5)) return PORTABLE;
  if (!bits(kept, 0xe6) || !bits(seven.b, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31)) return AVX2;  // F, DQ, BW, VL
  if (!bits(seven.c, 1u << 11) || !bits(more.a, 1u << 5)) return AVX512;                           // VNNI, BF16
  const bool tiles = bits(kept, 0x60000) && bits(seven.d, 1u << 22 | 1u << 24 | 1u << 25);  // bf16, tiles, int8
  return tiles && amx_allowed() ? AMX : BF16;
}
#else
Isa found() { return PORTABLE; }
#endif

Isa from_environment() {
  const char* asked = std::getenv("ACEFAST_ISA");
  if (!asked || !*asked) return supported();
  for (int i = 0; i < 5; i++)
    if (!std::strcmp(asked, ISA_NAMES[i])) return Isa(i) < supported() ? Isa(i) : supported();
  throw std::invalid_argument(std::string("ACEFAST_ISA must be portable, avx2, avx512, bf16 or amx, got ") + asked);
}

Isa& in_use() {
  static Isa chosen = from_environment();
  return chosen;
}

}  // namespace

Isa supported() {
  static const Isa most = found() < Isa(BUILT) ? found() : Isa(BUILT);
  return most;
}

Isa isa() { return in_use(); }

void limit_isa(Isa most) { in_use() = most < supported() ? most : supported(); }

long inner_cache() {
  static const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : 1 << 19;
}

const Engine& engine() {
  switch (isa()) {
#if BUILT >= 4
    case AMX: return amx_engine;
#endif
#if BUILT >= 3
    case BF16: return bf16_engine;
#endif
#if BUILT >= 2
    case AVX512: return avx512::fp32_engine;
#endif
#if BUILT >= 1
    case AVX2: return avx2::fp32_engine;
#endif
    default: return portable::fp32_engine;
  }
}

const Engine8& engine8() {
  switch (isa()) {
#if BUILT >= 4
    case AMX: return amx8_engine;
#endif
#if BUILT >= 3
    case BF16: return vnni_engine;
#endif
#if BUILT >= 2
    case AVX512: return avx512::int8_engine;
#endif
#if BUILT >= 1
    case AVX2: return avx2::int8_engine;
#endif
    default: return portable::int8_engine;
  }
}

void rest() {
#if BUILT >= 4
  if (isa() == AMX) amx_rest();
#endif
}
