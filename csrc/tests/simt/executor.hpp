#pragma once

// Few headers: this one is compiled with every kernel that a program asks for.
#include <cstddef>
#include <cstdint>

// Runs CUDA kernels on the CPU, from the sources that NVRTC compiles: a fiber for each CUDA thread,
// all on the thread that launches. Fibers change at barriers, collectives of a warp and, in a
// random schedule, at atomics, so that a missing barrier gives a wrong result, an error or, in a
// build with ThreadSanitizer, a race.
namespace simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

enum class Order { kAscending, kDescending, kRandom };

// Which thread runs next. `resident_blocks` blocks run at once; the others wait for one to end.
struct Schedule {
  Order order = Order::kAscending;
  std::uint64_t seed = 0;
  unsigned resident_blocks = 1;
};

// Of all launches of this thread from now on.
void set_schedule(const Schedule& schedule);

// What a CUDA thread does: run(what).
struct Body {
  void (*run)(const void* what);
  const void* what;
};

template <class Kernel>
Body body_of(const Kernel& kernel) {
  return {[](const void* what) { (*static_cast<const Kernel*>(what))(); }, &kernel};
}

// Runs a body grid x block times. Throws std::runtime_error for a fault that the executor sees
// itself, as a deadlock or a collective with a wrong mask; memory that was written before stays as
// it is then.
void run(Dim3 grid, Dim3 block, std::size_t dynamic_shared, Body body);

// The same of `kernel()`.
template <class Kernel>
void launch(Dim3 grid, Dim3 block, std::size_t dynamic_shared, const Kernel& kernel) {
  run(grid, block, dynamic_shared, body_of(kernel));
}

// As run(); returns what went wrong, which stays until the thread's next call, or null.
const char* try_run(Dim3 grid, Dim3 block, std::size_t dynamic_shared, Body body) noexcept;

// What follows is for cuda.hpp, on behalf of the CUDA thread that is running.
// ----------------------

Dim3 thread_index();
Dim3 block_index();
Dim3 block_extent();
Dim3 grid_extent();
unsigned lane();

// Lets others run, in a random schedule sometimes, in any other after a long time: called wherever
// a GPU's threads may see each other's work.
void preempt();

enum class Collective { kSync, kShuffle, kBallot, kMatch, kAdd, kMin, kMax, kAnd, kOr, kXor };

// Waits for the lanes of `mask` that have not ended. Every lane gives a value, and a number that
// must be within the warp: the lane it reads from. Returns what the collective makes of the values:
// kShuffle the value of lane `from`, garbage where that lane takes no part; kBallot a bit for each
// value other than 0; kMatch a bit for each lane with the same value; the rest as the name says.
std::uint64_t meet(Collective what, std::uint32_t mask, std::uint64_t value, unsigned from = 0);

// Waits for all threads of the block that have not ended; returns how many gave true.
unsigned barrier(bool value);

// Shared memory of the running block: the same for the same site, filled with garbage at first.
void* shared(const void* site, std::size_t bytes);
void* dynamic_shared();

}  // namespace simt
