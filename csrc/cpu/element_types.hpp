#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "wide_values.hpp"

// Arrays that come as addresses, with the names of their element types.
namespace gnnsys {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Returns with(Value) for the element type of this name. Throws std::invalid_argument for another;
// `what` says what is not made of it.
template <class With>
int64_t with_values(const std::string& dtype, const char* what, const With& with) {
  if (dtype == "float32") return with(float{});
  if (dtype == "float64") return with(double{});
  if (dtype == "bfloat16") return with(BFloat16{});
  throw std::invalid_argument(std::string(what) + " of " + dtype);
}

// Returns with(Value, Id): Id is int32_t where ids have 4 bytes, else int64_t.
template <class With>
int64_t with_values_and_ids(const std::string& dtype, int id_bytes, const char* what,
                            const With& with) {
  return with_values(dtype, what, [&]<class Value>(Value value) {
    return id_bytes == 4 ? with(value, int32_t{}) : with(value, int64_t{});
  });
}

}  // namespace gnnsys
