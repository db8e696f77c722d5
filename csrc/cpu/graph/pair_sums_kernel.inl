// The loops over pairs, compiled once for each instruction set: pair_sums.cpp includes this with
// GNNSYS_NAMESPACE and GNNSYS_TARGET set.

namespace GNNSYS_NAMESPACE {

#include "rows/row_kernel.inl"

template <class Value, class Id>
GNNSYS_TARGET inline void prefetch_other(const Job<Value, Id>& job, int64_t pair) {
  const char* const row = reinterpret_cast<const char*>(job.u + job.pairs.other[pair] * job.width);
  const int64_t bytes = std::min(job.width * static_cast<int64_t>(sizeof(Value)), kPrefetchBytes);
  for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(row + b, 0, 3);
}

template <class Value, class Id>
GNNSYS_TARGET void sum_pairs(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  const int64_t* const indptr = job.pairs.indptr;
  const int64_t last = indptr[end];
  for (int64_t i = begin; i < end; ++i) {
    const Value* const row = job.u + i * job.width;
    Value sum = 0;
    for (int64_t e = indptr[i]; e < indptr[i + 1]; ++e) {
      // A weight of 0 stands for a pair that is there the other way round alone.
      const int64_t later = e + kPrefetchPairs;
      if (later < last && job.pairs.weight[2 * later] != Value(0)) {
        prefetch_other(job, later);
      }
      const Value weight = job.pairs.weight[2 * e];
      if (weight == Value(0)) continue;
      const Value* const other = job.u + static_cast<int64_t>(job.pairs.other[e]) * job.width;
      sum += weight * std::exp(job.tau * dot(row, other, job.width));
    }
    job.out[i] = sum;
  }
}

template <class Value, class Id>
GNNSYS_TARGET void derive_pairs(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  const int64_t* const indptr = job.pairs.indptr;
  const int64_t last = indptr[end];
  for (int64_t i = begin; i < end; ++i) {
    const Value* const row = job.u + i * job.width;
    Value* const out = job.out + i * job.width;
    std::fill(out, out + job.width, Value(0));
    for (int64_t e = indptr[i]; e < indptr[i + 1]; ++e) {
      if (e + kPrefetchPairs < last) prefetch_other(job, e + kPrefetchPairs);
      const int64_t j = static_cast<int64_t>(job.pairs.other[e]);
      const Value* const weight = job.pairs.weight + 2 * e;
      const Value* const other = job.u + j * job.width;
      const Value exponential = std::exp(job.tau * dot(row, other, job.width));
      const Value factor = weight[0] * job.grad[i] + weight[1] * job.grad[j];
      add_multiple(out, other, job.tau * exponential * factor, job.width);
    }
  }
}

}  // namespace GNNSYS_NAMESPACE
