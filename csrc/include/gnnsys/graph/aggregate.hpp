#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

// Sums over the edges of each target node, the arithmetic of message passing.
//
// N rows of x, T targets, E edges, H heads, C channels of a head. Arrays come as addresses: rows
// may be of bfloat16, which no array protocol knows. 0 stands for an array that is not there.
namespace gnnsys {

// Edges grouped by target.
struct EdgeArrays {
  uintptr_t indptr;  // (T + 1) int64
  int64_t num_targets;
  uintptr_t source;  // (E) the row of each edge
  uintptr_t order;   // (E) where each edge's weight lies; 0: weights lie as the edges do
  int id_bytes;      // of `source` and `order`, 4 or 8
};

// Rows, and which multiples of them are summed.
struct RowArrays {
  std::string dtype;  // of x, weight, scale and what is computed: float32, float64 or bfloat16
  uintptr_t x;        // (N, H, C)
  int64_t num_rows;
  int64_t heads;
  int64_t channels;
  uintptr_t weight;  // (E, H) of each edge; 0: 1
  uintptr_t scale;   // (N) of each row, whichever edge reads it; 0: 1
  bool mean;         // divides by the number of edges of the target
};

// out (T, H, C) = for each target the sum of
//   weight[e] * scale[source[e]] * x[source[e]]
// over its edges, in their order: results do not depend on the threads or the instruction set.
//
// Returns -1, or an edge whose source is not a row of x; out is then of no use. Throws
// std::invalid_argument for another dtype.
int64_t sum_neighbors(const EdgeArrays& edges, const RowArrays& rows, uintptr_t out,
                      const ThreadPool& threads, Isa isa);

// out (E, H) of each edge = the dot products over channels of y[target] and x[source], times the
// coefficients without their weights: the derivative of the sum by the weights. Rows of y are
// targets; out lies as the weights do. Returns as sum_neighbors.
int64_t dot_neighbors(const EdgeArrays& edges, const RowArrays& rows, uintptr_t y, uintptr_t out,
                      const ThreadPool& threads, Isa isa);

// Writes the numbers of those rows at an address that have a bit set; `found` has room for all
// rows. Returns how many these are.
int64_t find_nonzero_rows(uintptr_t rows, int64_t row_bytes, std::span<int64_t> found);

}  // namespace gnnsys
