#pragma once

#include "../device.cuh"

// Counter-based random numbers, format `rng: 1` of gnnsys/rng.py, which defines everything here;
// gnnsys/philox.hpp has the same for the CPU. A change of any value is a new version of the format.
namespace gnnsys::cuda {

// A block of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
struct PhiloxBlock {
  u32 x0, x1, x2, x3;

  // By selection, so that the block stays in registers.
  __device__ u32 word(u32 i) const {
    const u32 low = (i & 1) != 0 ? x1 : x0, high = (i & 1) != 0 ? x3 : x2;
    return (i & 2) != 0 ? high : low;
  }
};

__device__ inline PhiloxBlock philox4x32(PhiloxBlock c, u32 k0, u32 k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 p0 = u64{0xD2511F53u} * c.x0, p1 = u64{0xCD9E8D57u} * c.x2;
    c = {static_cast<u32>(p1 >> 32) ^ c.x1 ^ k0, static_cast<u32>(p1),
         static_cast<u32>(p0 >> 32) ^ c.x3 ^ k1, static_cast<u32>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
// generators", OOPSLA 2014), a bijection of 64-bit words.
__device__ inline u64 mix64(u64 x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// What is constant over a hop of one relation.
struct Stream {
  u64 seed, epoch, group, hop, edge_type;

  // The Philox key of everything that is drawn for it.
  __device__ u64 key() const {
    const u64 words[] = {seed, epoch, group, hop, edge_type};
    u64 mixed = 0;
#pragma unroll
    for (int i = 0; i < 5; ++i) mixed = mix64(mixed + words[i] + 0x9E3779B97F4A7C15ull);
    return mixed;
  }
};

// The numbered draws of a node whose batch is neither disjoint nor temporal: counter word 2 is 0.
struct Draws {
  u64 key, node;

  // Word draw % 4 of the draw's block; four draws share one, a retry moves on by 2^24 blocks.
  __device__ u32 word(u32 draw, u32 retry) const {
    return philox4x32(
               {static_cast<u32>(node), static_cast<u32>(node >> 32), 0, draw / 4 + (retry << 24)},
               static_cast<u32>(key), static_cast<u32>(key >> 32))
        .word(draw % 4);
  }

  // In [0, bound), exactly uniform (Lemire, "Fast random integer generation in an interval", 2019);
  // 0 < bound.
  __device__ u32 bounded(u32 draw, u32 bound) const {
    u64 product = u64{word(draw, 0)} * bound;
    if (static_cast<u32>(product) < bound) {
      const u32 rejected = (0u - bound) % bound;  // 2^32 % bound
      for (u32 retry = 1; static_cast<u32>(product) < rejected; ++retry) {
        product = u64{word(draw, retry)} * bound;
      }
    }
    return static_cast<u32>(product >> 32);
  }
};

}  // namespace gnnsys::cuda
