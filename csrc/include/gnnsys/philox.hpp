#pragma once

#include <array>
#include <cstdint>

namespace gnnsys {

// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). gnnsys/rng.py defines everything here; a change of any value is a
// new version of the format.

inline constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
inline constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;

using PhiloxBlock = std::array<uint32_t, 4>;

inline PhiloxBlock philox4x32(PhiloxBlock c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxM0} * c[0];
    const uint64_t p1 = uint64_t{kPhiloxM1} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

// The finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
// generators", OOPSLA 2014), a bijection of 64-bit words.
inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// The Philox key of everything that is drawn for one (seed, epoch, group, hop, edge type).
inline uint64_t stream_key(uint64_t seed, uint64_t epoch, uint64_t group, uint64_t hop,
                           uint64_t edge_type) {
  uint64_t key = 0;
  for (uint64_t word : {seed, epoch, group, hop, edge_type}) {
    key = mix64(key + word + 0x9E3779B97F4A7C15ull);
  }
  return key;
}

// Counter word 3: four draws share a block; a rejected draw moves on by kRetryStep blocks.
inline constexpr int kDrawsPerBlock = 4;
inline constexpr uint32_t kRetryStep = 1u << 24;

inline PhiloxBlock draw_block(uint64_t key, uint64_t node, uint32_t position, uint32_t block) {
  return philox4x32(
      {static_cast<uint32_t>(node), static_cast<uint32_t>(node >> 32), position, block},
      static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
}

}  // namespace gnnsys
