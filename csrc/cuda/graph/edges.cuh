#pragma once

#include "arithmetic.cuh"

// N rows of x, T targets, E edges, H heads, C channels of a head, as in
// csrc/include/gnnsys/graph/aggregate.hpp. Null stands for an array that is not there.
namespace gnnsys::cuda {

constexpr int kAhead = 4;  // edges, or parts of a row, whose loads are under way at a time

// Edges grouped by target. Id is i32 or i64.
template <class Id>
struct Edges {
  const i64* indptr;  // (T + 1)
  i64 targets;
  const Id* source;  // (E) the row of each edge; null: the edge's number, rows lie as the edges do
  const Id* order;   // (E) where each edge's weight lies; null: weights lie as the edges do

  __device__ i64 degree(i64 target) const { return indptr[target + 1] - indptr[target]; }
  __device__ i64 source_of(i64 edge) const {
    return source == nullptr ? edge : static_cast<i64>(source[edge]);
  }
  __device__ i64 place_of(i64 edge) const {
    return order == nullptr ? edge : static_cast<i64>(order[edge]);
  }
  // The target of an edge from indptr[0] up to indptr[T] - 1.
  __device__ i64 target_of(i64 edge) const {
    i64 first = 0, last = targets;  // indptr[first] <= edge < indptr[last]
    while (last - first > 1) {
      const i64 middle = first + (last - first) / 2;
      if (indptr[middle] <= edge) {
        first = middle;
      } else {
        last = middle;
      }
    }
    return first;
  }
};

// Rows, and which multiples of them are summed. Value is float, double or BFloat.
template <class Value>
struct Rows {
  const Value* x;  // (N, H, C)
  i64 count;
  i64 heads;
  i64 channels;
  const Value* weight;  // (E, H) of each edge; null: 1
  const Value* scale;   // (N) of each row, whichever edge reads it; null: 1
  bool mean;            // divides by the number of edges of the target

  __device__ i64 width() const { return heads * channels; }
  __device__ bool has(i64 row) const { return row >= 0 && row < count; }
};

}  // namespace gnnsys::cuda
