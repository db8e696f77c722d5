#pragma once

#include <cstdint>
#include <span>

namespace gnnsys {

// Communities of a graph in CSC by label propagation (Raghavan et al., 2007) with a bound on their
// size (Meyerhenke, Sanders, Schulz, 2014). Index is int32_t or int64_t.

// The part of a pass that nodes [first, last) are, one after the other: each takes the label that
// most of its in-neighbours have among those that fewer than `most` nodes have, and keeps its own
// where that is as frequent. `labels` (nodes) are numbers of nodes; `sizes` (nodes) are the nodes
// of each label, kept up to date; `votes` (nodes) are zeros, before and after. Returns the nodes
// that took another label, or -1 - e where edge e has a source outside the graph.
template <class Index>
int64_t propagate_labels(std::span<const int64_t> indptr, std::span<const Index> indices,
                         int64_t first, int64_t last, int64_t most, std::span<Index> labels,
                         std::span<Index> sizes, std::span<Index> votes);

// Gives nodes without in-neighbours a label of their targets: the one that most of them have where
// more than half do (Boyer, Moore, 1981), else one of them. `votes` (nodes) are zeros before the
// first call; targets are [first, last), and a call goes on where the one before ended.
template <class Index>
void adopt_labels(std::span<const int64_t> indptr, std::span<const Index> indices, int64_t first,
                  int64_t last, std::span<Index> labels, std::span<Index> votes);

}  // namespace gnnsys
