#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace gnnsys {

// Graphs with typed edges: E edges of T types, and their pairs, which are the distinct (node, type)
// of one end of the edges. By one thread: layers over the edges take far longer.

// Sorts edges by type, keeping the order of those with one type: type_ptr (T + 1) receives where
// each type begins, the outputs (E) the ends and the numbers of the edges. Tells whether the edges
// were in this order, where order_out is not written; nothing if a type lies outside [0, T) or a
// node outside its range: the outputs are then of no use.
std::optional<bool> sort_by_type(std::span<const int64_t> source, std::span<const int64_t> target,
                                 std::span<const int64_t> type, int64_t num_sources,
                                 int64_t num_targets, std::span<int64_t> type_ptr,
                                 std::span<int64_t> source_out, std::span<int64_t> target_out,
                                 std::span<int64_t> order_out);

// Numbers the pairs of edges sorted by type, in the order in which edges first have them. Fills
// pair_of_edge (E), pair_ptr (T + 1) with where the pairs of each type begin, and node_of_pair up
// to the number of pairs, which is returned. Takes O(E + T + num_nodes) steps.
int64_t number_pairs(std::span<const int64_t> node, std::span<const int64_t> type_ptr,
                     int64_t num_nodes, std::span<int64_t> pair_of_edge,
                     std::span<int64_t> node_of_pair, std::span<int64_t> pair_ptr);

}  // namespace gnnsys
