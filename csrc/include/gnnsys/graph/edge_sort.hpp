#pragma once

#include <cstdint>

#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// The steps of an external sort of edges by (target, source). Index is int32_t or int64_t.

// Adds the edges of each target to counts (num_nodes). Returns -1, or the first edge one of whose
// nodes lies outside; counts are then of no use.
template <class Index>
int64_t count_targets(const Index* source, const Index* target, int64_t num_edges,
                      int64_t num_sources, int64_t num_targets, int64_t* counts);

// Groups edges by bucket, stably. Bucket b holds the targets in [bounds[b], bounds[b + 1]); bounds
// has num_buckets + 1 entries and covers all targets. Edge e of the input has the number
// first_number + e; numbers are written unless number_out is null. sizes (num_buckets) receives the
// edges of each bucket.
template <class Index>
void split_edges(const Index* source, const Index* target, int64_t num_edges, const int64_t* bounds,
                 int64_t num_buckets, int64_t first_number, Index* source_out, Index* target_out,
                 int64_t* number_out, int64_t* sizes);

// Sorts the edges of the targets [first_target, first_target + num_targets) into CSC, sources
// ascending. indptr (num_targets + 1) holds each target's first place, counted from indptr[0].
// Edges of one source and target keep their order; `number` and number_out may be null together.
// Returns false where the edges are not those that indptr counts; the outputs are then of no use.
template <class Index>
bool sort_edges(const Index* source, const Index* target, const int64_t* number, int64_t num_edges,
                int64_t first_target, int64_t num_targets, const int64_t* indptr, Index* indices,
                int64_t* number_out, ThreadPool& threads);

}  // namespace gnnsys
