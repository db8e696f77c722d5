// What is compiled of execute_plan.cuh for GPUs.
#include "cuda/cache/execute_plan.cuh"

namespace gnnsys::cuda {

#define PLANS(Word, lanes, Out)                                                                \
  template __global__ void move_out_of_slots<Word, lanes, Out>(Plan, CacheMemory, char*, u32*, \
                                                               u32*);                          \
  template __global__ void move_into_slots<Word, lanes, Out>(Plan, CacheMemory, char*, u32*,   \
                                                             const u32*);

PLANS(uint4, 0, Copy<uint4>)
PLANS(uint4, 8, Copy<uint4>)
PLANS(uint4, 32, Copy<uint4>)
PLANS(uint2, 0, Copy<uint2>)
PLANS(u32, 16, Copy<u32>)
PLANS(u16, 0, Copy<u16>)
PLANS(u8, 1, Copy<u8>)

// Names with commas are no arguments of a macro.
using HalfToFloat = Decode<uint4, Half, float>;
using BFloatToFloat = Decode<uint4, BFloat, float>;
PLANS(uint4, 0, HalfToFloat)
PLANS(uint4, 16, BFloatToFloat)

}  // namespace gnnsys::cuda
