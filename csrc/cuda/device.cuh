#pragma once

// What all kernels share. Device code only: NVRTC compiles it without any header of a toolkit, and
// a C++20 compiler with csrc/tests/simt on its path, which runs it on the CPU.

#ifdef __CUDACC__
#define GNNSYS_SHARED(type, name, count) __shared__ type name[count]
#else
#include "simt/cuda.hpp"
#define GNNSYS_SHARED(type, name, count) SIMT_SHARED(type, name, count)
#endif

namespace gnnsys::cuda {

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr int kWarp = 32;
constexpr u32 kAllLanes = 0xffffffffu;
constexpr int kFlight = 4;  // loads that a thread has under way before it uses the first

// Faults that a launch finds, in a word of device memory that is 0 before: the host reads it at the
// next synchronisation and raises what it means.
enum Fault : u32 {
  kIdOutOfRange = 1,
  kBadIndptr = 2,  // not ascending within [0, edges], or 2^32 edges at the node that it names
  kBadSource = 3,  // a neighbour that is no node of the graph
  kTableFull = 4,  // a hash table has no entry left for the id that it names
  kSourceOutOfRange = 5,  // of the edge with this number
  // Of a plan of a cache: a position outside the batch, given twice, or copied from a copy; their
  // number where it is not the batch's; a number outside the memory.
  kPlanPosition = 6,
  kPlanRows = 7,
  kPlanSlot = 8,
  kPlanCell = 9,
  kPlanStaged = 10,
  kPlanPeer = 11,
  kIndexOutOfRange = 12,  // of the row of a result with this number
};

// The first fault stays: [0] what, [1] and [2] the halves of the id or value.
__device__ inline void report(u32* fault, u32 what, i64 value) {
  if (atomicCAS(fault, 0u, what) == 0u) {
    fault[1] = static_cast<u32>(static_cast<u64>(value));
    fault[2] = static_cast<u32>(static_cast<u64>(value) >> 32);
  }
}

// A word that other threads may be changing by atomics.
template <class T>
__device__ __forceinline__ T peek(const T* place) {
#ifdef __CUDACC__
  return *static_cast<const volatile T*>(place);
#else
  return __atomic_load_n(place, __ATOMIC_RELAXED);
#endif
}

__device__ __forceinline__ i64 thread_number() {
  return static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ i64 thread_count() { return static_cast<i64>(gridDim.x) * blockDim.x; }

}  // namespace gnnsys::cuda
