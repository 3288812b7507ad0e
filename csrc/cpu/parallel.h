// Work for all threads, and memory that a thread keeps from one call to the next.
#pragma once
#include <omp.h>

#include <cstdlib>
#include <new>

#ifndef LEVEL
#define LEVEL portable
#endif

namespace LEVEL {

// Calls work(i) for i from 0 to n, each by whichever thread is free.
template <typename Work>
void in_parallel(long n, int threads, const Work& work) {
  if (n > 0 && (threads < 2 || n == 1)) {
    for (long i = 0; i < n; i++) work(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (long i = 0; i < n; i++) work(i);
}

// Memory on a 64-byte boundary that grows and is used again; what it held before is lost.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  template <typename T>
  T* get(size_t count) {
    size_t wanted = (count * sizeof(T) + 4095) / 4096 * 4096;
    if (wanted > bytes_) {
      std::free(memory_);
      memory_ = std::aligned_alloc(4096, wanted), bytes_ = memory_ ? wanted : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace LEVEL
