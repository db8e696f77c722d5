#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// What sums of values are held in.
namespace gnnsys {

// A float32 of which the upper half is kept; sums are in float32.
struct BFloat16 {
  uint16_t bits;
};

template <class Value>
using Wide = std::conditional_t<std::is_same_v<Value, BFloat16>, float, Value>;

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
// To the nearest, ties to even. A NaN keeps a bit that adding to it would carry away.
inline void narrow(float x, BFloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  to.bits = static_cast<uint16_t>(x == x ? rounded >> 16 : (bits >> 16) | 0x40);
}

}  // namespace gnnsys
