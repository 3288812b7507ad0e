// Memory of a kernel on fibers, and numbers of 16 bits in it; included behind the kernel.
#pragma once
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
