// What this CPU can do, and how much of it is used. $ACEFAST_ISA lowers the limit: "portable", "avx2", "avx512", "bf16"
// (AVX-512 with bf16 and 8-bit dot products) or "amx".
#pragma once

enum Isa { PORTABLE, AVX2, AVX512, BF16, AMX };

extern const char* const ISA_NAMES[5];

Isa supported();  // by the CPU, the operating system and whatever compiled this
Isa isa();        // in use: at most what is supported
void limit_isa(Isa most);
long inner_cache();  // bytes of one core's second cache

// Level of instructions that the code around the engines is compiled for.
template <typename F>
F at_level(F portable, F avx2, F avx512, F avx512_bf16) {
  return isa() >= BF16 ? avx512_bf16 : isa() >= AVX512 ? avx512 : isa() >= AVX2 ? avx2 : portable;
}
