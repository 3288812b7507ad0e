// Memory of a kernel on fibers, and numbers of 16 bits in it; included behind the kernel.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

template <typename T>
float value(T v) {
  return unpack2<T>(v.bits).x;
}
template <typename T>
T number(float v) {
  return {u16(pack2<T>(v, 0))};
}

// Memory of exactly so many, 16 bytes aligned, whose ends the address sanitizer sees.
template <typename T>
struct Memory {
  explicit Memory(size_t n) : n(n) {
    if (posix_memalign(reinterpret_cast<void**>(&data), 16, n * sizeof(T))) fibers::fail("no memory");
    memset(data, 0xff, n * sizeof(T));
  }
  ~Memory() { free(data); }
  Memory(const Memory&) = delete;
  T& operator[](size_t i) { return data[i]; }
  T* data = nullptr;
  size_t n;
};

// Relative L2 of what a kernel gives.
struct Error {
  double off = 0, size = 0;

  void add(double got, double meant) { off += (got - meant) * (got - meant), size += meant * meant; }
  void hold(double tolerance) const {
    const double error = std::sqrt(off / size);
    if (!(error <= tolerance)) fibers::fail("relative L2 is " + std::to_string(error));
  }
};

// What a program ends with: 1, and a line that says what is wrong, if ``check`` finds anything.
template <typename Check>
int outcome(Check check) {
  try {
    check();
  } catch (const std::exception& fault) {
    puts(fault.what());
    return 1;
  }
  return 0;
}
