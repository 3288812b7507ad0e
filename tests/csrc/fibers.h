// Blocks of CUDA threads on one thread of a CPU: each is a fiber, and they change places only where a warp or the block
// meets, or a thread sleeps. Found: warps and blocks that do not meet at one place, blocks that wait for ever, cp.async
// never waited for; what is read before it is written is NaN. Orders and moments that a GPU is free to choose are
// options: a missing barrier or wait needs the right one to show. Memory is seen by all as soon as it is written.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace fibers {

struct Options {
  bool eager = false;  // a cp.async copies at once, else when it is waited for
  enum { FAIR, GREEDY, BACKWARDS } order = FAIR;  // each warp to its next meeting in turn, or as far as it goes alone
  unsigned at_once = 1;  // blocks; of more than one a warp at a time, as chance has it, and one of each block rarely
  unsigned seed = 0;     // of that
};

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  unsigned thread = 0;
  enum { RUNS, IN_WARP, IN_BLOCK, SLEEPS, DONE } state = RUNS;
  const char* place = "";      // where it waits
  const void* given = nullptr;  // to the collective it waits in
  void* result = nullptr;
  std::vector<Copy> copies;  // not yet made, the oldest first
  std::vector<size_t> groups;
  size_t open = 0;  // copies of no group yet
  ucontext_t context;
  std::unique_ptr<char[]> stack;
};

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

class Block {
 public:
  static constexpr size_t STACK = 256 << 10;

  Block(Index index, Index grid, unsigned threads, size_t shared, Options options, std::function<void()> kernel)
      : index(index), grid(grid), options(options), shared_bytes_(shared), kernel_(std::move(kernel)), fibers_(threads) {
    if (posix_memalign(reinterpret_cast<void**>(&shared_), 256, shared ? shared : 1)) fail("no memory");
    memset(shared_, 0xff, shared);  // NaN
    for (unsigned i = 0; i < threads; i++) {
      Fiber& f = fibers_[i];
      f.thread = i;
      f.stack.reset(new char[STACK]);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = STACK;
      f.context.uc_link = nullptr;
      makecontext(&f.context, begin, 0);
    }
  }
  ~Block() { free(shared_); }
  Block(const Block&) = delete;

  // Each warp in turn or, with ``random``, one of them. Returns whether a thread got any further than to sleep again.
  bool run(std::mt19937* random) {
    current = this;
    bool moved = false;
    const size_t warps = fibers_.size() / 32, chosen = random ? (*random)() % warps : 0;
    if (random && rare_ > warps) rare_ = (*random)() % warps;
    if (random && chosen == rare_ && (*random)() % 50) return false;
    for (Fiber& f : fibers_)
      if (f.state == Fiber::SLEEPS) f.state = Fiber::RUNS;
    for (size_t i = 0; i < (random ? 1 : warps); i++) {
      const size_t warp = random ? chosen : options.order == Options::BACKWARDS ? warps - 1 - i : i;
      while (run_warp(warp)) {
        moved = true;
        if (random || options.order == Options::FAIR) break;
      }
    }
    const size_t done = count(Fiber::DONE), waiting = count(Fiber::IN_BLOCK);
    if (waiting + done == fibers_.size() && waiting) {
      if (done) fail("some threads have ended, others wait at " + first(Fiber::IN_BLOCK).place);
      for (Fiber& f : fibers_) {
        if (f.place != fibers_[0].place) fail(std::string("threads wait at ") + f.place + " and " + fibers_[0].place);
        f.state = Fiber::RUNS;
      }
      return true;
    }
    if (done == fibers_.size())
      for (Fiber& f : fibers_)
        if (!f.copies.empty()) fail("a thread has ended with copies that it never waited for");
    return moved;
  }

  bool done() const { return count(Fiber::DONE) == fibers_.size(); }
  std::string stuck() const { return first(count(Fiber::SLEEPS) ? Fiber::SLEEPS : Fiber::IN_WARP).place; }

  Fiber& fiber() { return *running_; }
  char* shared(unsigned address, size_t bytes) {
    if (address % bytes || address + bytes > shared_bytes_) fail("shared memory: a wrong address");
    return shared_ + address;
  }

  void meet_block(const char* place) { wait(Fiber::IN_BLOCK, place); }
  void sleep(const char* place) { wait(Fiber::SLEEPS, place); }

  // All 32 lanes come with what is ``given`` and leave with what ``all`` has written for them.
  void meet_warp(const char* place, const void* given, void* result, void (*all)(Fiber* lanes)) {
    Fiber* lanes = &fibers_[running_->thread / 32 * 32];
    running_->given = given, running_->result = result, running_->place = place, running_->state = Fiber::IN_WARP;
    for (int i = 0; i < 32; i++) {
      if (lanes[i].state == Fiber::RUNS) {  // the last to come wakes the others
        wait(Fiber::IN_WARP, place);
        return;
      }
      if (lanes[i].state != Fiber::IN_WARP || lanes[i].place != place)
        fail(std::string("a warp is at ") + place + " and at " + lanes[i].place);
    }
    all(lanes);
    for (int i = 0; i < 32; i++) lanes[i].state = Fiber::RUNS;
  }

  static inline Block* current = nullptr;
  const Index index, grid;
  const Options options;

 private:
  struct Named {
    std::string place;
  };

  static void begin() {
    Block& b = *current;
    b.arrived(nullptr);
    try {
      b.kernel_();
    } catch (...) {
      b.fault_ = std::current_exception();
    }
    b.wait(Fiber::DONE, "its end");
  }

  bool run_warp(size_t warp) {
    bool moved = false;
    for (int i = 0; i < 32; i++) {
      Fiber& f = fibers_[warp * 32 + (options.order == Options::BACKWARDS ? 31 - i : i)];
      if (f.state != Fiber::RUNS) continue;
      running_ = &f;
      change(&own_, &f.context, f.stack.get(), STACK);
      moved |= f.state != Fiber::SLEEPS;
      if (fault_) std::rethrow_exception(fault_);
    }
    return moved;
  }

  void wait(decltype(Fiber::state) state, const char* place) {
    running_->state = state, running_->place = place;
    change(&running_->context, &own_, own_stack_, own_size_);
  }

  void change(ucontext_t* from, ucontext_t* to, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t size) {
    void* kept = nullptr;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&kept, stack, size);
#endif
    swapcontext(from, to);
    arrived(kept);
  }

  void arrived([[maybe_unused]] void* kept) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack;
    size_t size;
    __sanitizer_finish_switch_fiber(kept, &stack, &size);
    if (!own_stack_) own_stack_ = stack, own_size_ = size;  // the first to arrive is a fiber, from the scheduler
#endif
  }

  size_t count(decltype(Fiber::state) state) const {
    size_t n = 0;
    for (const Fiber& f : fibers_) n += f.state == state;
    return n;
  }

  Named first(decltype(Fiber::state) state) const {
    for (const Fiber& f : fibers_)
      if (f.state == state) return {f.place};
    return {"the block's barrier"};
  }

  char* shared_ = nullptr;
  const size_t shared_bytes_;
  const std::function<void()> kernel_;
  std::vector<Fiber> fibers_;
  Fiber* running_ = nullptr;
  size_t rare_ = -1;  // a warp
  ucontext_t own_;
  const void* own_stack_ = nullptr;
  size_t own_size_ = 0;
  std::exception_ptr fault_;
};

inline void launch(Index grid, unsigned threads, size_t shared, Options options, const std::function<void()>& kernel) {
  const size_t all = size_t(grid.x) * grid.y * grid.z, patience = 10000;
  std::mt19937 random(options.seed);
  std::vector<size_t> order(all);
  for (size_t i = 0; i < all; i++) order[i] = i;
  if (options.at_once > 1) std::shuffle(order.begin(), order.end(), random);
  std::vector<std::unique_ptr<Block>> running;
  for (size_t next = 0, idle = 0; next < all || !running.empty(); idle++) {
    for (; next < all && running.size() < options.at_once; next++) {
      const unsigned i = order[next], x = i % grid.x, y = i / grid.x % grid.y, z = i / grid.x / grid.y;
      running.push_back(std::make_unique<Block>(Index{x, y, z}, grid, threads, shared, options, kernel));
    }
    const size_t one = random() % running.size();
    if (running[one]->run(options.at_once > 1 ? &random : nullptr)) idle = 0;
    if (running[one]->done())
      running.erase(running.begin() + one);
    else if (idle > (options.at_once > 1 ? patience * running.size() : 0))
      fail("threads wait for ever at " + running[one]->stuck());
  }
}

}  // namespace fibers
