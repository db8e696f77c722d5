#pragma once

#include "dot_neighbors.cuh"

// Sums of exponentials of cosines over weighted pairs of rows, the positives of a contrastive loss,
// as csrc/include/gnnsys/graph/pair_sums.hpp has them. Two launches each, so that neither waits for
// rows of many pairs:
//
//   forward:  dot_edges with PairTerms, then the sum of segments of those: sum_neighbors without
//             `source`, 1 head of 1 channel;
//   backward: dot_edges with PairFactors, then sum_neighbors of u with those as weights.
//
// In all of them x and y are u (N, d), 1 head of d channels, and the pairs are edges from their
// second row to their first. Products and sums are those of csrc/cpu/graph/pair_sums.cpp, bit for
// bit, but for `exponential`, whose values differ by at most 3 units in the last place of a float,
// 2 of a double: a sum then differs by the same part of the sum of its terms' absolute values, and
// by what its own roundings add.
namespace gnnsys::cuda {

// out (E): weight[e, 0] * exp(tau * u[i] . u[j]). A weight of 0 stands for a pair that is there the
// other way round alone, whose rows are not read.
//
//   Bytes of a pair: 1 value of weight read, 1 written.
template <class Value>
struct PairTerms {
  const Value* weight;  // (E, 2) of the pair, and of the same two rows the other way round
  Value tau;
  Value* out;

  __device__ bool skips(i64 pair) const { return weight[2 * pair] == Value(0); }
  __device__ void skip(i64 pair) const { out[pair] = 0; }

  template <class Id>
  __device__ void operator()(const Edges<Id>&, const Rows<Value>&, const EdgeHead& at,
                             Value dot) const {
    out[at.edge] = multiply(weight[2 * at.edge], exponential(multiply(tau, dot)));
  }
};

// out (E): what row j of each pair is multiplied by in the derivative of sum(grad * forward) by row
// i, where every pair is there both ways.
//
//   Bytes of a pair: 2 values of weight and 1 of grad read, 1 written.
template <class Value>
struct PairFactors {
  const Value* weight;  // (E, 2)
  const Value* grad;    // (N)
  Value tau;
  Value* out;

  __device__ static bool skips(i64) { return false; }
  __device__ static void skip(i64) {}

  template <class Id>
  __device__ void operator()(const Edges<Id>&, const Rows<Value>&, const EdgeHead& at,
                             Value dot) const {
    const Value factor = add(multiply(weight[2 * at.edge], grad[at.target]),
                             multiply(weight[2 * at.edge + 1], grad[at.source]));
    out[at.edge] = multiply(multiply(tau, exponential(multiply(tau, dot))), factor);
  }
};

}  // namespace gnnsys::cuda
