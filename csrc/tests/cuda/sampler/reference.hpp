#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include "cuda/device.cuh"
#include "gnnsys/philox.hpp"

// Uniform sampling one draw after another, as tests/unit/rng_reference.py has it.
namespace reference {

using namespace gnnsys::cuda;

inline u32 bounded(u64 key, u64 node, u32 draw, u64 bound) {
  for (u32 retry = 0;; ++retry) {
    const u32 block = draw / 4 + (retry << 24);
    const u64 product = u64{gnnsys::draw_block(key, node, 0, block)[draw % 4]} * bound;
    if ((product & 0xffffffffu) >= (u64{1} << 32) % bound) return static_cast<u32>(product >> 32);
  }
}

inline std::vector<u32> sample_positions(u64 key, u64 node, u64 degree, i64 fanout, bool replace) {
  std::vector<u32> chosen;
  if (degree == 0 || fanout == 0) return chosen;
  const auto k = static_cast<u64>(fanout);
  if (fanout < 0 || (!replace && k >= degree)) {
    chosen.resize(degree);
    std::iota(chosen.begin(), chosen.end(), 0u);
  } else if (replace) {
    for (u32 i = 0; i < k; ++i) chosen.push_back(bounded(key, node, i, degree));
    std::sort(chosen.begin(), chosen.end());
  } else {
    std::set<u32> set;
    for (u32 i = 0; i < k; ++i) {
      const u64 last = degree - k + i;
      if (!set.insert(bounded(key, node, i, last + 1)).second) set.insert(static_cast<u32>(last));
    }
    chosen.assign(set.begin(), set.end());
  }
  return chosen;
}

}  // namespace reference
