#pragma once

#include <cstdint>

#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

// Sums of exponentials of cosines over weighted pairs of rows: the positives of a contrastive loss.
//
// N rows of u, d columns, E pairs.
namespace gnnsys {

// Pairs grouped by their first row. Id is int32_t or int64_t, Value float or double.
template <class Value, class Id>
struct Pairs {
  const int64_t* indptr;  // (N + 1)
  int64_t num_rows;
  const Id* other;      // (E) the second row of each pair
  const Value* weight;  // (E, 2) of the pair, and of the same two rows the other way round
};

// out (N): for each row i the sum of weight[e, 0] * exp(tau * u[i] . u[other[e]]) over its pairs.
template <class Value, class Id>
void pair_sums(const Pairs<Value, Id>& pairs, const Value* u, int64_t width, Value tau, Value* out,
               const ThreadPool& pool, Isa isa);

// out (N, d): the derivative of sum(grad * pair_sums) by u. Every pair has to be there both ways.
template <class Value, class Id>
void pair_sums_backward(const Pairs<Value, Id>& pairs, const Value* u, int64_t width, Value tau,
                        const Value* grad, Value* out, const ThreadPool& pool, Isa isa);

}  // namespace gnnsys
