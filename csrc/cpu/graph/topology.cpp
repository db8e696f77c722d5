#include "gnnsys/graph/topology.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gnnsys {
namespace {

void check_nodes(const int64_t* node, int64_t count, int64_t num_nodes, const char* what) {
  for (int64_t e = 0; e < count; ++e) {
    if (static_cast<uint64_t>(node[e]) >= static_cast<uint64_t>(num_nodes)) {
      throw std::out_of_range("edge " + std::to_string(e) + " has the " + what + " " +
                              std::to_string(node[e]) + ", outside the nodes [0, " +
                              std::to_string(num_nodes) + ")");
    }
  }
}

}  // namespace

template <class Index>
void coo_to_csc(const int64_t* source, const int64_t* target, int64_t num_edges, int64_t num_nodes,
                int64_t* indptr, Index* indices, int64_t* perm) {
  check_nodes(source, num_edges, num_nodes, "source");
  check_nodes(target, num_edges, num_nodes, "target");
  // Counted two places up, summed one place up: filling then moves each entry to its final value.
  std::fill(indptr, indptr + num_nodes + 1, 0);
  for (int64_t e = 0; e < num_edges; ++e) {
    if (target[e] + 2 <= num_nodes) ++indptr[target[e] + 2];
  }
  for (int64_t v = 2; v <= num_nodes; ++v) indptr[v] += indptr[v - 1];
  for (int64_t e = 0; e < num_edges; ++e) {
    const int64_t at = indptr[target[e] + 1]++;
    indices[at] = static_cast<Index>(source[e]);
    if (perm) perm[at] = e;
  }
}

int64_t find_indptr_fault(const int64_t* indptr, int64_t num_nodes, int64_t num_edges) {
  if (indptr[0] != 0) return 0;
  for (int64_t v = 1; v <= num_nodes; ++v) {
    if (indptr[v] < indptr[v - 1] || indptr[v] > num_edges) return v;
  }
  return indptr[num_nodes] == num_edges ? -1 : num_nodes;
}

template void coo_to_csc<int32_t>(const int64_t*, const int64_t*, int64_t, int64_t, int64_t*,
                                  int32_t*, int64_t*);
template void coo_to_csc<int64_t>(const int64_t*, const int64_t*, int64_t, int64_t, int64_t*,
                                  int64_t*, int64_t*);

}  // namespace gnnsys
