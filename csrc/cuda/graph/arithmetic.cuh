#pragma once

#include "../rows/elements.cuh"

// What is computed with values of rows, rounded as csrc/cpu rounds: every product and sum by
// itself, never two in one fused operation but for `multiply_add`. Not for --use_fast_math, which
// flushes small numbers to 0.
namespace gnnsys::cuda {

// What sums of values are held in.
template <class Value>
struct WideOf {
  using type = Value;
};
template <>
struct WideOf<BFloat> {
  using type = float;
};
template <class Value>
using Wide = typename WideOf<Value>::type;

template <class Value>
__device__ __forceinline__ Wide<Value> widen(Value value) {
  return Cast<Wide<Value>, Value>::of(value);
}

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }
// a b + c, rounded once.
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return __fma_rn(a, b, c);
}
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double divide(double a, double b) { return __ddiv_rn(a, b); }

// Not rounded to the nearest: CUDA's is within 2 units in the last place of floats and 1 of
// doubles, the C library's within 1.
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// Neighbouring values, read and written at once.
template <class Value, int kCount>
struct alignas(kCount * sizeof(Value) < 16 ? kCount * sizeof(Value) : 16) Vector {
  Value values[kCount];
};

template <int kCount, class Value>
__device__ __forceinline__ Vector<Value, kCount> load(const Value* place) {
  return *reinterpret_cast<const Vector<Value, kCount>*>(place);
}

}  // namespace gnnsys::cuda
