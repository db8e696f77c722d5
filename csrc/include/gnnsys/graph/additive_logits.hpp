#pragma once

#include <cstdint>
#include <string>

#include "gnnsys/graph/aggregate.hpp"
#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

// The logits of additive attention (GATv2), of which no row is written for an edge.
//
// T groups of edges, by the node at one end; S nodes at the other, E edges, H heads, C channels of
// a head. Arrays come as addresses, as those of aggregate.hpp do.
namespace gnnsys {

// For an edge u = x[its node at the other end] + y[its group] + edge[e], and of it
//   leaky(u) = u where that is positive, slope * u elsewhere.
struct AdditiveRows {
  std::string dtype;  // of all arrays: float32, float64 or bfloat16
  int64_t heads;
  int64_t channels;
  uintptr_t x;  // (S, H, C)
  int64_t num_rows;
  uintptr_t y;     // (T, H, C)
  uintptr_t edge;  // (E, H, C); 0: none
  uintptr_t att;   // (H, C)
  double slope;
};

// out (E, H) of each edge and head = the dot product of att and leaky(u), by the same operations
// whatever the threads and the instruction set.
//
// Returns -1, or an edge whose node at the other end is no row of x; out is then of no use. Throws
// std::invalid_argument for another dtype.
int64_t additive_logits(const EdgeArrays& edges, const AdditiveRows& rows, uintptr_t out,
                        const ThreadPool& threads, Isa isa);

// Of grad (E, H), the derivative by the logits: out (T, H, C) = that by y; of_edges (E, H, C) by
// the edges' rows and of_att (H, C) by att; 0: not wanted. Returns as additive_logits.
int64_t additive_logits_backward(const EdgeArrays& edges, const AdditiveRows& rows, uintptr_t grad,
                                 uintptr_t out, uintptr_t of_edges, uintptr_t of_att,
                                 const ThreadPool& threads, Isa isa);

}  // namespace gnnsys
