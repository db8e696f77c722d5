#pragma once

#include <cstdint>

namespace gnnsys {

// Sorts an edge list by target, keeping the order of edges with the same target.
//
// Writes indptr (num_nodes + 1), indices (num_edges) and, unless it is null, perm (num_edges): the
// edge in the list that stands at each position of the CSC. Throws std::out_of_range for a node
// outside [0, num_nodes).
template <class Index>
void coo_to_csc(const int64_t* source, const int64_t* target, int64_t num_edges, int64_t num_nodes,
                int64_t* indptr, Index* indices, int64_t* perm);

// The first place where indptr descends or leaves [0, num_edges], or -1.
int64_t find_indptr_fault(const int64_t* indptr, int64_t num_nodes, int64_t num_edges);

}  // namespace gnnsys
