#pragma once

#include <cstdint>
#include <span>
#include <tuple>

namespace gnnsys {

// Edge lists in memory: E edges, each from a source to a target.

// Whether targets ascend; the least and the greatest source; those of the targets. The bounds of no
// edges are 0 and -1.
using EdgeScan = std::tuple<bool, int64_t, int64_t, int64_t, int64_t>;
EdgeScan scan_edges(std::span<const int64_t> source, std::span<const int64_t> target);

// Fills indptr (T + 1) for targets that ascend within [0, T).
void count_sorted(std::span<const int64_t> target, std::span<int64_t> indptr);

// Groups edges by key, keeping the order of those with one key: indptr (keys + 1) receives where
// each group begins, value_out and order_out (E) the values and the numbers of the edges. Returns
// -1, or the first edge whose key or value lies outside [0, keys) or [0, num_values); the outputs
// are then of no use. Id and Order are int32_t or int64_t.
template <class Id, class Order>
int64_t group_edges(std::span<const int64_t> key, std::span<const int64_t> value,
                    int64_t num_values, std::span<int64_t> indptr, std::span<Id> value_out,
                    std::span<Order> order_out);

// Edges sorted by target, with a loop of each node below num_nodes after the other edges of that
// target, and no loops besides. The edges of target t are indptr[t] ... indptr[t + 1] - 1, with
// these sources and numbers (their places where order is empty). indptr_out (max(T, num_nodes) + 1)
// receives where each target's edges begin; the others, with room for E + num_nodes, the edges and
// the number of each: for a loop -1, or, where keep is set, that of the last one given. Returns the
// number of edges written, and the greatest source and target of them, or -1.
using LoopedSize = std::tuple<int64_t, int64_t, int64_t>;
template <class Id>
LoopedSize add_loops(std::span<const int64_t> indptr, std::span<const Id> source,
                     std::span<const Id> order, int64_t num_nodes, bool keep,
                     std::span<int64_t> indptr_out, std::span<int64_t> source_out,
                     std::span<int64_t> target_out, std::span<int64_t> number_out);

// The first place where indptr descends or leaves [0, num_edges], or -1.
int64_t find_indptr_fault(std::span<const int64_t> indptr, int64_t num_edges);

}  // namespace gnnsys
