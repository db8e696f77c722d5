#pragma once

#include <cstdint>

#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

// Sums over the edges of each target node, the arithmetic of message passing.
//
// N rows of x, T targets, E edges, H heads, C channels of a head.
namespace gnnsys {

// A float32 of which the upper half is kept; sums are in float32.
struct BFloat16 {
  uint16_t bits;
};

// Edges grouped by target. Id is int32_t or int64_t.
template <class Id>
struct Neighbors {
  const int64_t* indptr;  // (T + 1)
  int64_t num_targets;
  const Id* source;  // (E) the row of each edge
  const Id* order;   // (E) where each edge's weight lies; null: weights lie as the edges do
};

// Which multiples of the rows are summed. Value is float, double or BFloat16.
template <class Value>
struct Coefficients {
  const Value* weight;  // (E, H) of each edge; null: 1
  const Value* scale;   // (N) of each row, whichever edge reads it; null: 1
  bool mean;            // divides by the number of edges of the target
};

template <class Value>
struct Rows {
  const Value* data;  // (N, H, C)
  int64_t num_rows;
  int64_t heads;
  int64_t channels;
};

// out (T, H, C) = for each target the sum of
//   weight[e] * scale[source[e]] * x[source[e]]
// over its edges, in their order: results do not depend on the threads or the instruction set.
//
// Returns -1, or an edge whose source is not a row of x; out is then of no use.
template <class Value, class Id>
int64_t sum_neighbors(const Neighbors<Id>& edges, const Coefficients<Value>& coefficients,
                      const Rows<Value>& x, Value* out, ThreadPool& pool, Isa isa);

// out (E, H) of each edge = the dot products over channels of y[target] and x[source], times the
// coefficients without their weights: the derivative of the sum by the weights. Rows of y are
// targets; out lies as the weights do. Returns as sum_neighbors.
template <class Value, class Id>
int64_t dot_neighbors(const Neighbors<Id>& edges, const Coefficients<Value>& coefficients,
                      const Rows<Value>& x, const Value* y, Value* out, ThreadPool& pool, Isa isa);

// What an edge list holds; the bounds of no edges are 0 and -1.
struct EdgeScan {
  bool sorted;  // targets ascend
  int64_t min_source, max_source;
  int64_t min_target, max_target;
};

EdgeScan scan_edges(const int64_t* source, const int64_t* target, int64_t num_edges);

// Fills indptr (T + 1) for targets that ascend within [0, T).
void count_sorted(const int64_t* target, int64_t num_edges, int64_t num_targets, int64_t* indptr);

// Groups edges by key, keeping the order of those with one key: value_out and order_out (E) receive
// the values and the numbers of the edges. Returns -1, or the first edge whose key lies outside
// [0, num_keys); the outputs are then of no use.
template <class Id>
int64_t group_edges(const int64_t* key, const int64_t* value, int64_t num_edges, int64_t num_keys,
                    int64_t* indptr, Id* value_out, Id* order_out);

// Rows up to the last one that has a bit set: behind it all are zeros.
int64_t count_until_zeros(const void* rows, int64_t num_rows, int64_t row_bytes);

}  // namespace gnnsys
