#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace gnnsys {

// Sorts values `key << 32 | number`, which are in order of their numbers; no key is greater than
// `largest`. Keys in random order cost std::sort a wrong branch at every other comparison.
inline void sort_numbered(std::vector<uint64_t>& values, uint32_t largest,
                          std::vector<uint64_t>& scratch) {
  constexpr int kBits = 11;
  constexpr std::size_t kDigits = std::size_t{1} << kBits;
  if (values.size() < kDigits) {
    std::sort(values.begin(), values.end());
    return;
  }
  scratch.resize(values.size());
  for (int shift = 0; shift < 32 && largest >> shift != 0; shift += kBits) {
    std::array<uint32_t, kDigits> places{};
    const auto digit = [shift](uint64_t value) { return value >> (32 + shift) & (kDigits - 1); };
    for (const uint64_t value : values) ++places[digit(value)];
    uint32_t sum = 0;
    for (uint32_t& place : places) sum += std::exchange(place, sum);
    for (const uint64_t value : values) scratch[places[digit(value)]++] = value;
    values.swap(scratch);
  }
}

}  // namespace gnnsys
