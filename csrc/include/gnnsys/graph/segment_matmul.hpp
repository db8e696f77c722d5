#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

// Products of rows with the matrix of their type, and their derivatives by the matrices.
//
// R rows of x, M rows of the result, T types, B blocks, K columns of a row of x, N of the result.
// Arrays come as addresses: rows may be of bfloat16, which no array protocol knows.
namespace gnnsys {

// Rows of the result, in the order of their types.
struct SegmentArrays {
  uintptr_t ptr;  // (T + 1) int64: where the rows of each type begin; ascends from 0 to M
  int64_t num_types;
  uintptr_t index;  // (M) int64: the row of x of each; 0: that of the same number
};

struct SegmentRows {
  std::string dtype;  // of all arrays: float32, float64 or bfloat16, which is summed in float32
  uintptr_t x;        // (R, B, K)
  int64_t num_rows;
  int64_t blocks;
  int64_t width;    // K
  int64_t columns;  // N
};

// out (M, B, N): of each row p of type t and block b, x[index[p], b] @ weight[t, b].
//
// weight (T, B, K, N) has an element every `strides` elements. Results do not depend on the
// threads, but on whether the instruction set rounds once or twice in a * b + c. Returns -1, or a
// row whose index is no row of x; out is then of no use. Throws std::invalid_argument for another
// dtype.
int64_t segment_matmul(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t weight,
                       const std::array<int64_t, 4>& strides, uintptr_t out,
                       const ThreadPool& threads, Isa isa);

// out (T, B, K, N): of each type and block the sum of the outer products of x[index[p], b] and
// grad[p, b], for grad (M, B, N): zero where a type has no rows. Otherwise as segment_matmul.
int64_t segment_outer(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t grad,
                      uintptr_t out, const ThreadPool& threads, Isa isa);

}  // namespace gnnsys
