// Work for all threads, and memory that a thread keeps from one call to the next.
#pragma once
#include <cstdlib>
#include <new>

#include "engine.h"

#ifndef LEVEL
#define LEVEL portable
#endif

// Runs a function on each of `threads` threads. It is what gcc makes of "#pragma omp parallel"; called by name, any compiler
// takes the OpenMP that torch brings into the process, and no second one with threads of its own.
extern "C" void GOMP_parallel(void (*run)(void*), void* with, unsigned threads, unsigned flags);

namespace LEVEL {

struct Rested {  // a thread's work is done, or failed
  ~Rested() { rest(); }
};

// Calls work(i) for i from 0 to n, each by whichever thread is free.
template <typename Work>
void in_parallel(long n, int threads, const Work& work) {
  if (threads < 2 || n < 2) {
    const Rested at_end;
    for (long i = 0; i < n; i++) work(i);
    return;
  }
  struct Shared {
    const Work& work;
    long n, next;
  } shared = {work, n, 0};
  const auto run = [](void* with) {
    const Rested at_end;
    Shared& s = *static_cast<Shared*>(with);
    for (long i; (i = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.n;) s.work(i);
  };
  GOMP_parallel(run, &shared, threads, 0);
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
