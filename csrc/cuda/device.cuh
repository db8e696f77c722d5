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

// Faults that a launch finds, in a word of device memory that is 0 before: the host reads it at the
// next synchronisation and raises what it means.
enum Fault : u32 {
  kIdOutOfRange = 1,
  // Of a plan of a cache: a position outside the batch, given twice, or copied from a copy; their
  // number where it is not the batch's; a number outside the memory.
  kPlanPosition,
  kPlanRows,
  kPlanSlot,
  kPlanCell,
  kPlanStaged,
  kPlanPeer,
};

// The first fault stays: [0] what, [1] and [2] the halves of the id or value.
__device__ inline void report(u32* fault, u32 what, i64 value) {
  if (atomicCAS(fault, 0u, what) == 0u) {
    fault[1] = static_cast<u32>(static_cast<u64>(value));
    fault[2] = static_cast<u32>(static_cast<u64>(value) >> 32);
  }
}

__device__ __forceinline__ i64 thread_number() {
  return static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ i64 thread_count() { return static_cast<i64>(gridDim.x) * blockDim.x; }

}  // namespace gnnsys::cuda
