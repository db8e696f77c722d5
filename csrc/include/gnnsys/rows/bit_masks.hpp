#pragma once

#include <cstdint>
#include <optional>

#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// Which elements count, in arrays of floating point numbers.
enum class Sign {
  positive,      // those above 0
  not_negative,  // those, and NaN: what are not at most 0
};

// Packs one bit an element, the lowest bit of a byte first; bits ((n + 7) / 8), the last ones 0.
//
// data (n) of elements of `bytes` bytes. `infinity` is the pattern of +infinity; what is above it,
// without the sign, is NaN. All throw std::invalid_argument for elements of other than 1, 2, 4 or 8
// bytes.
void pack_signs(int bytes, uint64_t infinity, Sign counts, uintptr_t data, int64_t n, uint8_t* bits,
                const ThreadPool& pool);

// Packs whether patterns are not 0, where all that are not are one and the same; returns that one,
// or 0 where there is none, or nothing where there are others.
std::optional<uint64_t> pack_two_values(int bytes, uintptr_t data, int64_t n, uint8_t* bits,
                                        const ThreadPool& pool);

// Writes (n) elements: the pattern `one` where a bit is set, else 0.
void unpack_bits(int bytes, const uint8_t* bits, int64_t n, uint64_t one, uintptr_t out,
                 const ThreadPool& pool);

}  // namespace gnnsys
