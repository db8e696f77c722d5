#pragma once

#include <bit>
#include <type_traits>

#include "cuda/rows/elements.cuh"

// Casts of elements as the host's compiler makes them.
namespace casts {

using namespace gnnsys::cuda;

template <class To, class From>
To cast(From value) {
  if constexpr (std::is_same_v<From, Half>) {  // a number that is none becomes a quiet one
    return static_cast<To>(std::bit_cast<_Float16>(value));
  } else if constexpr (std::is_same_v<From, BFloat>) {
    return static_cast<To>(std::bit_cast<float>(u32{value.bits} << 16));
  } else if constexpr (std::is_same_v<To, Half>) {
    return std::bit_cast<Half>(static_cast<_Float16>(value));
  } else if constexpr (std::is_same_v<To, BFloat>) {
    // The nearer of the two around it, the even one in between; their bits are neighbours.
    if (value != value) return {0x7fc0};
    const u32 bits = std::bit_cast<u32>(value), below = bits >> 16, rest = bits & 0xffffu;
    return {static_cast<u16>(below + (rest > 0x8000u || (rest == 0x8000u && below % 2 == 1)))};
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace casts
