#pragma once

// The words of CUDA C++ that kernels use, for a compiler that does not know them: executor.hpp runs
// what they are written in. Only what csrc/cuda needs is here; memory order is CUDA's: atomics
// order nothing but themselves, collectives order nothing but __syncwarp.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "executor.hpp"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_extent())
#define gridDim (::simt::grid_extent())

// One site of a source: each instance of a template has a place of its own.
#define SIMT_SHARED(type, name, count)               \
  static_assert(std::is_trivially_copyable_v<type>); \
  static const char name##_site = 0;                 \
  type* const name = static_cast<type*>(::simt::shared(&name##_site, sizeof(type) * (count)))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline void __syncthreads() { simt::barrier(false); }
inline int __syncthreads_or(int value) { return simt::barrier(value != 0) != 0; }
inline int __syncthreads_count(int value) { return static_cast<int>(simt::barrier(value != 0)); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  simt::meet(simt::Collective::kSync, mask, 0);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const unsigned first = simt::lane() & ~static_cast<unsigned>(width - 1);
  const unsigned source = first + (static_cast<unsigned>(from) & static_cast<unsigned>(width - 1));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::meet(simt::Collective::kShuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return __shfl_sync(mask, value, static_cast<int>(simt::lane()) ^ lanes, width);
}

// A lane whose source would lie outside its part of the warp keeps its own value.
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  const unsigned place = simt::lane() & static_cast<unsigned>(width - 1);
  return __shfl_sync(mask, value, static_cast<int>(place < lanes ? place : place - lanes), width);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  const unsigned place = simt::lane() & static_cast<unsigned>(width - 1);
  const unsigned source = place + lanes;
  return __shfl_sync(
      mask, value, static_cast<int>(source < static_cast<unsigned>(width) ? source : place), width);
}

inline unsigned __ballot_sync(unsigned mask, int value) {
  return static_cast<unsigned>(simt::meet(simt::Collective::kBallot, mask, value != 0));
}
inline int __any_sync(unsigned mask, int value) { return __ballot_sync(mask, value) != 0; }
inline int __all_sync(unsigned mask, int value) { return __ballot_sync(mask, !value) == 0; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(std::is_integral_v<T>);
  return static_cast<unsigned>(
      simt::meet(simt::Collective::kMatch, mask, static_cast<std::uint64_t>(value)));
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(simt::meet(simt::Collective::kAdd, mask, value));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(simt::meet(simt::Collective::kMin, mask, value));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(simt::meet(simt::Collective::kMax, mask, value));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(simt::meet(simt::Collective::kOr, mask, value));
}

// Which lanes are together is never certain: the least that may be.
inline unsigned __activemask() { return 1u << simt::lane(); }

template <class T>
T atomicAdd(T* place, std::type_identity_t<T> value) {
  simt::preempt();
  if constexpr (std::is_integral_v<T>) {
    return __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
  } else {
    T old, sum;
    __atomic_load(place, &old, __ATOMIC_RELAXED);
    do {
      sum = old + value;
    } while (
        !__atomic_compare_exchange(place, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
  }
}

template <class T>
T atomicCAS(T* place, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  simt::preempt();
  __atomic_compare_exchange_n(place, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

template <class T>
T atomicExch(T* place, std::type_identity_t<T> value) {
  simt::preempt();
  return __atomic_exchange_n(place, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicOr(T* place, std::type_identity_t<T> value) {
  simt::preempt();
  return __atomic_fetch_or(place, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicMin(T* place, std::type_identity_t<T> value) {
  simt::preempt();
  T old = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(place, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class T>
T atomicMax(T* place, std::type_identity_t<T> value) {
  simt::preempt();
  T old = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(place, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}

// The C library's; <cmath> takes longer to compile than most kernels.
extern "C" float expf(float x) noexcept;
extern "C" double exp(double x) noexcept;

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(std::uint64_t{a} * b >> 32);
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Rounded by themselves, which takes a compiler that fuses no products and sums.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
