#pragma once

#include <cstdint>
#include <span>

#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// The steps of an external sort of edges by (target, source). Index is int32_t or int64_t.

// Adds the edges of each target to counts (targets). Returns -1, or the first edge one of whose
// nodes lies outside; counts are then of no use.
template <class Index>
int64_t count_targets(std::span<const Index> source, std::span<const Index> target,
                      int64_t num_sources, std::span<int64_t> counts);

// Groups edges by bucket, stably. Bucket b holds the targets in [bounds[b], bounds[b + 1]); bounds
// (buckets + 1) covers all targets. Edge e of the input has the number first_number + e; numbers
// are written unless number_out is empty. sizes (buckets) receives the edges of each bucket.
template <class Index>
void split_edges(std::span<const Index> source, std::span<const Index> target,
                 std::span<const int64_t> bounds, int64_t first_number, std::span<Index> source_out,
                 std::span<Index> target_out, std::span<int64_t> number_out,
                 std::span<int64_t> sizes);

// Sorts the edges of the targets from first_target on into CSC, sources ascending. indptr
// (targets + 1) holds each target's first place, counted from indptr[0]. Edges of one source and
// target keep their order; `number` and number_out may be empty together. Returns false where the
// edges are not those that indptr counts; the outputs are then of no use.
template <class Index>
bool sort_edges(std::span<const Index> source, std::span<const Index> target,
                std::span<const int64_t> number, int64_t first_target,
                std::span<const int64_t> indptr, std::span<Index> indices,
                std::span<int64_t> number_out, const ThreadPool& threads);

}  // namespace gnnsys
