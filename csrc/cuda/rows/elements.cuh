#pragma once

#include "../device.cuh"

// Element types that tables store, and their casts to what is delivered: those of torch, by integer
// arithmetic where CUDA has the types only in headers of its toolkit.
namespace gnnsys::cuda {

struct Half {
  u16 bits;
};
struct BFloat {
  u16 bits;
};

__device__ inline float to_float(Half h) {
  const u32 sign = static_cast<u32>(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) {  // infinite, or no number: as hardware does, a quiet one
    const u32 fraction = (rest & 0x3ffu) << 13;
    return __uint_as_float(sign | 0x7f800000u | fraction | (fraction != 0 ? 0x400000u : 0u));
  }
  // The exponent is corrected by a product, which also makes normal numbers of subnormal ones.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

__device__ inline float to_float(BFloat b) {
  return __uint_as_float(static_cast<u32>(b.bits) << 16);
}

// To the nearest, ties to even.
__device__ inline BFloat to_bfloat(float value) {
  const u32 bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<u16>(0x7fc0u)};
  return {static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

__device__ inline Half to_half(float value) {
  const u32 bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  u32 half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x47800000u) {  // 2^16 and more
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // below 2^-14: the sum's last bits are those of a subnormal
    half = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
  }
  return {static_cast<u16>(sign | half)};
}

// Casts that say a rounding are of values that the others hold exactly.
template <class To, class From>
struct Cast {
  __device__ static To of(From value) { return static_cast<To>(value); }
};
template <class To>
struct Cast<To, Half> {
  __device__ static To of(Half value) { return static_cast<To>(to_float(value)); }
};
template <class To>
struct Cast<To, BFloat> {
  __device__ static To of(BFloat value) { return static_cast<To>(to_float(value)); }
};
template <>
struct Cast<Half, float> {
  __device__ static Half of(float value) { return to_half(value); }
};
template <>
struct Cast<BFloat, float> {
  __device__ static BFloat of(float value) { return to_bfloat(value); }
};

}  // namespace gnnsys::cuda
