#pragma once

#include <cstdint>

#include "gnnsys/isa.hpp"

namespace gnnsys {

// Dropout whose mask is a function of (key, vertex, column), so that it does not matter when, where
// or in what company a row is computed. The tests' reference is rng_reference.keeps.
struct KeyedDropout {
  uint64_t key;
  uint32_t least;  // a value is kept where its random word is not below
};

// out (rows, width) = scale * x where kept, else 0; vertices (rows). out may be x.
template <class Value>
void keyed_dropout(const KeyedDropout& dropout, const int64_t* vertices, int64_t rows,
                   int64_t width, Value scale, const Value* x, Value* out, Isa isa);

}  // namespace gnnsys
