#pragma once

#include <cstdint>
#include <string>

#include "gnnsys/graph/aggregate.hpp"
#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

// The softmax over the edges of each target node, the attention of graph networks.
//
// S sources, T targets, E edges, H heads. Arrays come as addresses, as those of aggregate.hpp do.
namespace gnnsys {

// z (E, H): for an edge e from s to t the sum edge[e] + source[s] + target[t], whose negative
// values are multiplied by the slope.
struct EdgeLogits {
  std::string dtype;  // of all arrays: float32, float64 or bfloat16
  int64_t heads;
  uintptr_t edge;    // (E, H); 0: none
  uintptr_t source;  // (S, H); 0: none
  int64_t num_sources;
  uintptr_t target;  // (T, H); 0: none
  bool leaky;        // whether there is a slope
  double slope;
};

// out (E, H) = exp(z[e] - m) / the sum of these over the edges of e's target, where m is their
// greatest z. Sums are made in the order of the edges: results do not depend on the threads or the
// instruction set.
//
// Returns -1, or an edge whose source is no row of `source`; out is then of no use. Throws
// std::invalid_argument for another dtype.
int64_t edge_softmax(const EdgeArrays& edges, const EdgeLogits& logits, uintptr_t out,
                     const ThreadPool& threads, Isa isa);

// out (E, H) = the derivative by edge[e], of the softmax alpha (E, H) and the derivative grad
// (E, H) by it; of_targets (T, H) = for each target the sum over its edges; 0: not wanted.
//
// Returns as edge_softmax. Where there is no slope, the logits themselves are not read.
int64_t edge_softmax_backward(const EdgeArrays& edges, const EdgeLogits& logits, uintptr_t alpha,
                              uintptr_t grad, uintptr_t out, uintptr_t of_targets,
                              const ThreadPool& threads, Isa isa);

// out (T, H) = for each target the sum of values (E, H) over its edges, in their order.
void sum_edges(const EdgeArrays& edges, const std::string& dtype, int64_t heads, uintptr_t values,
               uintptr_t out, const ThreadPool& threads, Isa isa);

}  // namespace gnnsys
