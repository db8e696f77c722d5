#include "executor.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.hpp"

#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kPatience =
    256;  // atomics in a row before others run: somebody may wait for them
constexpr unsigned char kGarbage = 0xA5;

// Order between threads, for ThreadSanitizer, which takes the place for a lock.
void release(void* place) {
#ifdef SIMT_TSAN
  __tsan_release(place);
#else
  (void)place;
#endif
}

void acquire(void* place) {
#ifdef SIMT_TSAN
  __tsan_acquire(place);
#else
  (void)place;
#endif
}

enum class State { kReady, kAtBarrier, kAtCollective, kWantsShared, kDone };

struct Block;
struct Thread;

// A fiber, which outlives the threads that it runs: a stack is dear. One whose thread does not end
// goes with its launch, not unwound.
struct Worker {
  std::unique_ptr<Fiber> fiber;
  Thread* thread = nullptr;
};

struct Thread {
  Block* block = nullptr;
  std::unique_ptr<Worker> worker;  // from its first step to its end
  Dim3 index;
  unsigned number = 0;  // in the block
  State state = State::kReady;
  unsigned in_a_row = 0;
  // Of the barrier that it waits at.
  bool vote = false;
  unsigned votes = 0;
  // Of the shared memory that it wants.
  const void* site = nullptr;
  std::size_t bytes = 0;
  void* area = nullptr;
  // Of the collective that it waits at.
  Collective what = Collective::kSync;
  std::uint32_t mask = 0;
  std::uint64_t value = 0;
  unsigned from = 0;
  std::uint64_t result = 0;

  unsigned lane() const { return number % kWarp; }
};

struct Freed {
  void operator()(void* area) const { std::free(area); }
};
using Area = std::unique_ptr<void, Freed>;

// On the heap, so that AddressSanitizer sees what is written beside it.
Area make_area(std::size_t bytes) {
  void* area = nullptr;
  if (posix_memalign(&area, 16, std::max<std::size_t>(bytes, 1)) != 0) throw std::bad_alloc();
  std::memset(area, kGarbage, bytes);
  return Area(area);
}

struct Block {
  Dim3 index;
  std::vector<Thread> threads;
  unsigned live = 0;
  unsigned at_barrier = 0;
  std::map<const void*, Area> shared;
  Area dynamic;
  char barrier_token = 0;
  std::vector<char> warp_tokens;
};

class Launch;

struct Machine {
  Schedule schedule;
  std::unique_ptr<Fiber> launcher;
  std::vector<std::unique_ptr<Worker>> idle;
  Launch* launch = nullptr;
  Thread* thread = nullptr;  // that runs
};

Machine& machine() {
  thread_local Machine one;
  return one;
}

class Launch {
 public:
  Launch(Dim3 grid, Dim3 block, std::size_t dynamic, Body body)
      : grid_(grid), extent_(block), dynamic_(dynamic), body_(body) {
    const Schedule& schedule = machine().schedule;
    order_ = schedule.order;
    random_ = schedule.seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    if (blocks == 0 || threads == 0 || threads > kMaxThreads) {
      throw std::runtime_error("a launch of " + std::to_string(blocks) + " blocks of " +
                               std::to_string(threads) + " threads");
    }
    num_blocks_ = blocks;
    num_threads_ = static_cast<unsigned>(threads);
  }

  void run() {
    release(&begin_token_);
    const unsigned most = std::max(1u, machine().schedule.resident_blocks);
    while (true) {
      while (blocks_.size() < most && started_ < num_blocks_) start_block();
      if (blocks_.empty()) return;
      if (ready_.empty()) throw std::runtime_error(describe_deadlock());
      Thread& thread = take_ready();
      do resume(thread);
      while (give_shared(thread));
      attend(thread);
      if (!fault_.empty()) throw std::runtime_error(fault_);
      if (thread.block->live == 0) end_block(*thread.block);
    }
  }

  // Called by the running thread, which leaves all else to the launcher: ThreadSanitizer watches
  // what the standard library does here, too.

  Dim3 grid() const { return grid_; }
  Dim3 extent() const { return extent_; }

  void preempt(Thread& self) {
    ++self.in_a_row;
    if (order_ == Order::kRandom ? next_random() % 4 != 0 : self.in_a_row < kPatience) return;
    self.in_a_row = 0;
    leave();
  }

  unsigned barrier(Thread& self, bool vote) {
    self.vote = vote;
    self.state = State::kAtBarrier;
    release(&self.block->barrier_token);
    leave();
    acquire(&self.block->barrier_token);
    return self.votes;
  }

  std::uint64_t meet(Thread& self, Collective what, std::uint32_t mask, std::uint64_t value,
                     unsigned from) {
    self.state = State::kAtCollective;
    self.what = what;
    self.mask = mask;
    self.value = value;
    self.from = from;
    char* token = &self.block->warp_tokens[self.number / kWarp];
    if (what == Collective::kSync) release(token);
    leave();
    if (what == Collective::kSync) acquire(token);
    return self.result;
  }

  void* shared(Thread& self, const void* site, std::size_t bytes) {
    self.site = site;
    self.bytes = bytes;
    self.state = State::kWantsShared;
    leave();
    acquire(&begin_token_);
    return self.area;
  }

 private:
  static std::string hex(std::uint32_t mask) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", mask);
    return text;
  }

  static std::string name(const Thread& thread) {
    const auto triple = [](Dim3 d) {
      return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
             ")";
    };
    return "block " + triple(thread.block->index) + " thread " + triple(thread.index);
  }

  std::uint64_t next_random() {  // SplitMix64
    std::uint64_t x = random_ += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }

  void start_block() {
    std::uint64_t number = started_++;
    if (order_ == Order::kDescending) number = num_blocks_ - 1 - number;
    auto block = std::make_unique<Block>();
    block->index = {static_cast<unsigned>(number % grid_.x),
                    static_cast<unsigned>(number / grid_.x % grid_.y),
                    static_cast<unsigned>(number / grid_.x / grid_.y)};
    block->dynamic = make_area(dynamic_);
    block->live = num_threads_;
    block->threads.resize(num_threads_);
    block->warp_tokens.resize((num_threads_ + kWarp - 1) / kWarp);
    for (unsigned i = 0; i < num_threads_; ++i) {
      Thread& thread = block->threads[i];
      thread.block = block.get();
      thread.number = i;
      thread.index = {i % extent_.x, i / extent_.x % extent_.y, i / extent_.x / extent_.y};
    }
    make_all_ready(block->threads, [](Thread&) { return true; });
    blocks_.push_back(std::move(block));
  }

  void end_block(Block& ended) {
    acquire(&end_token_);
    // No two threads of a block have the same fiber: ThreadSanitizer would take them for one.
    for (Thread& thread : ended.threads) machine().idle.push_back(std::move(thread.worker));
    std::erase_if(blocks_, [&](const auto& block) { return block.get() == &ended; });
  }

  bool give_shared(Thread& thread) {
    if (thread.state != State::kWantsShared) return false;
    Area& area = thread.block->shared[thread.site];
    if (!area) area = make_area(thread.bytes);
    release(&begin_token_);
    thread.area = area.get();
    thread.state = State::kReady;
    return true;
  }

  // What follows from where a thread has come to.
  void attend(Thread& thread) {
    Block& block = *thread.block;
    const unsigned warp = thread.number / kWarp;
    if (thread.state == State::kReady) {
      make_ready(thread);
    } else if (thread.state == State::kAtBarrier) {
      ++block.at_barrier;
      open_barrier(block);
    } else if (thread.state == State::kAtCollective) {
      if ((thread.mask >> thread.lane() & 1) == 0) {
        fault_ =
            name(thread) + ": its mask " + hex(thread.mask) + " does not name the lane that calls";
      }
      complete(block, warp, thread.mask);
    } else if (thread.state == State::kDone) {
      --block.live;
      open_barrier(block);
      // Some may wait for the lanes that have not ended.
      std::vector<std::uint32_t> masks;
      for_lanes(block, warp, [&](Thread& each) {
        if (each.state == State::kAtCollective) masks.push_back(each.mask);
      });
      for (std::uint32_t mask : masks) complete(block, warp, mask);
    }
  }

  void make_ready(Thread& thread) {
    thread.state = State::kReady;
    ready_.push_back(&thread);
  }

  template <class Which>
  void make_all_ready(std::vector<Thread>& threads, const Which& which) {
    const auto wake = [&](Thread& thread) {
      if (which(thread)) make_ready(thread);
    };
    if (order_ == Order::kDescending) {
      std::for_each(threads.rbegin(), threads.rend(), wake);
    } else {
      std::for_each(threads.begin(), threads.end(), wake);
    }
  }

  Thread& take_ready() {
    if (order_ == Order::kRandom) std::swap(ready_.front(), ready_[next_random() % ready_.size()]);
    Thread* thread = ready_.front();
    ready_.pop_front();
    return *thread;
  }

  void open_barrier(Block& block) {
    if (block.at_barrier == 0 || block.at_barrier < block.live) return;
    unsigned votes = 0;
    for (const Thread& thread : block.threads) {
      votes += thread.state == State::kAtBarrier && thread.vote;
    }
    block.at_barrier = 0;
    make_all_ready(block.threads, [&](Thread& thread) {
      thread.votes = votes;
      return thread.state == State::kAtBarrier;
    });
  }

  template <class F>
  void for_lanes(Block& block, unsigned warp, const F& f) {
    const unsigned first = warp * kWarp, last = std::min(first + kWarp, num_threads_);
    for (unsigned i = first; i < last; ++i) f(block.threads[i]);
  }

  // Lets the lanes of a mask go on where all that have not ended have come.
  void complete(Block& block, unsigned warp, std::uint32_t mask) {
    std::vector<Thread*> here;
    bool all = true;
    for_lanes(block, warp, [&](Thread& thread) {
      if ((mask >> thread.lane() & 1) == 0 || thread.state == State::kDone) return;
      if (thread.state == State::kAtCollective && thread.mask == mask) {
        here.push_back(&thread);
      } else {
        all = false;
      }
    });
    for (const Thread* thread : here) {
      if (thread->what != here.front()->what) {
        fault_ = name(*thread) + " and " + name(*here.front()) + " meet in different collectives";
        return;
      }
    }
    if (!all || here.empty()) return;
    for (Thread* thread : here) thread->result = result_of(*thread, here);
    if (order_ == Order::kDescending) std::reverse(here.begin(), here.end());
    for (Thread* thread : here) make_ready(*thread);
  }

  static std::uint64_t result_of(const Thread& self, const std::vector<Thread*>& lanes) {
    std::uint64_t bits = 0, result = 0;
    memset(&result, kGarbage, sizeof result);
    if (self.what == Collective::kShuffle) {
      for (const Thread* thread : lanes) {
        if (thread->lane() == self.from) return thread->value;
      }
      return result;
    }
    bool first = true;
    for (const Thread* thread : lanes) {
      const std::uint64_t value = thread->value, bit = std::uint64_t{1} << thread->lane();
      if (self.what == Collective::kBallot && value != 0) bits |= bit;
      if (self.what == Collective::kMatch && value == self.value) bits |= bit;
      if (first) {
        result = value;
      } else if (self.what == Collective::kAdd) {
        result += value;
      } else if (self.what == Collective::kMin) {
        result = std::min(result, value);
      } else if (self.what == Collective::kMax) {
        result = std::max(result, value);
      } else if (self.what == Collective::kAnd) {
        result &= value;
      } else if (self.what == Collective::kOr) {
        result |= value;
      } else if (self.what == Collective::kXor) {
        result ^= value;
      }
      first = false;
    }
    const bool counts = self.what == Collective::kBallot || self.what == Collective::kMatch;
    return counts ? bits : result;
  }

  std::string describe_deadlock() const {
    std::string text = "deadlock:";
    unsigned told = 0;
    for (const auto& block : blocks_) {
      for (const Thread& thread : block->threads) {
        if (thread.state == State::kDone) continue;
        if (++told > 4) return text + " …";
        text += "\n  " + name(thread) + " waits at ";
        text += thread.state == State::kAtBarrier ? "a barrier of the block"
                                                  : "a collective of lanes " + hex(thread.mask);
      }
    }
    return text;
  }

  static void run_threads(void* argument) {
    auto* self = static_cast<Worker*>(argument);
    while (true) {
      Launch& launch = *machine().launch;
      acquire(&launch.begin_token_);
      launch.body_.run(launch.body_.what);
      release(&launch.end_token_);
      self->thread->state = State::kDone;
      leave();
    }
  }

  void resume(Thread& thread) {
    Machine& all = machine();
    auto& worker = thread.worker;
    if (!worker) {
      if (all.idle.empty()) {
        worker = std::make_unique<Worker>();
        worker->fiber = std::make_unique<Fiber>(&run_threads, worker.get());
      } else {
        worker = std::move(all.idle.back());
        all.idle.pop_back();
      }
      worker->thread = &thread;
    }
    all.thread = &thread;
    Fiber::switch_to(*all.launcher, *worker->fiber);
  }

  static void leave() {
    Machine& all = machine();
    Fiber::switch_to(*all.thread->worker->fiber, *all.launcher);
  }

  const Dim3 grid_, extent_;
  const std::size_t dynamic_;
  const Body body_;
  Order order_ = Order::kAscending;
  std::uint64_t random_ = 0, num_blocks_ = 0, started_ = 0;
  unsigned num_threads_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::deque<Thread*> ready_;
  std::string fault_;
  char begin_token_ = 0, end_token_ = 0;
};

}  // namespace

void set_schedule(const Schedule& schedule) { machine().schedule = schedule; }

void run(Dim3 grid, Dim3 block, std::size_t dynamic_shared, Body body) {
  Machine& all = machine();
  if (all.launch != nullptr) throw std::runtime_error("a kernel launches another");
  if (!all.launcher) all.launcher = Fiber::of_this_thread();
  Launch one(grid, block, dynamic_shared, body);
  struct Current {
    explicit Current(Launch* launch) { machine().launch = launch; }
    ~Current() { machine().launch = nullptr; }
  } current(&one);
  one.run();
}

const char* try_run(Dim3 grid, Dim3 block, std::size_t dynamic_shared, Body body) noexcept {
  thread_local std::string told;
  try {
    run(grid, block, dynamic_shared, body);
    return nullptr;
  } catch (const std::exception& error) {
    told = error.what();
    return told.c_str();
  }
}

Dim3 thread_index() { return machine().thread->index; }
Dim3 block_index() { return machine().thread->block->index; }
Dim3 block_extent() { return machine().launch->extent(); }
Dim3 grid_extent() { return machine().launch->grid(); }
unsigned lane() { return machine().thread->lane(); }

void preempt() { machine().launch->preempt(*machine().thread); }

std::uint64_t meet(Collective what, std::uint32_t mask, std::uint64_t value, unsigned from) {
  return machine().launch->meet(*machine().thread, what, mask, value, from);
}

unsigned barrier(bool value) { return machine().launch->barrier(*machine().thread, value); }

void* shared(const void* site, std::size_t bytes) {
  return machine().launch->shared(*machine().thread, site, bytes);
}

void* dynamic_shared() { return machine().thread->block->dynamic.get(); }

}  // namespace simt
