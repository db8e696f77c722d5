#include "gnnsys/graph/communities.hpp"

#include <algorithm>
#include <vector>

#include "gnnsys/errors.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kDistance = 32;  // how far ahead of their use labels are prefetched

// Decides between labels of as many votes, otherwise for every node, so that none wins everywhere.
uint64_t mix(uint64_t label, uint64_t node) {
  uint64_t x = label * 0x9e3779b97f4a7c15u + node * 0xd1b54a32d192ed03u;
  x ^= x >> 32;
  return x * 0xd6e8feb86659fd93u;
}

void check(std::size_t edges, std::span<const int64_t> indptr, std::size_t nodes, int64_t first,
           int64_t last) {
  require(indptr.size() == nodes + 1 && 0 <= first && first <= last &&
              last <= static_cast<int64_t>(nodes) && indptr[first] >= 0 &&
              indptr[last] <= static_cast<int64_t>(edges) &&
              std::is_sorted(indptr.begin() + first, indptr.begin() + last + 1),
          "communities: an indptr that does not fit");
}

}  // namespace

template <class Index>
int64_t propagate_labels(std::span<const int64_t> indptr, std::span<const Index> indices,
                         int64_t first, int64_t last, int64_t most, std::span<Index> labels,
                         std::span<Index> sizes, std::span<Index> votes) {
  check(indices.size(), indptr, labels.size(), first, last);
  require(sizes.size() == labels.size() && votes.size() == labels.size(),
          "propagate_labels: arrays of different lengths");
  const auto num_nodes = static_cast<int64_t>(labels.size());
  const auto num_edges = static_cast<int64_t>(indices.size());
  const auto is_node = [num_nodes](Index id) {
    return static_cast<uint64_t>(id) < static_cast<uint64_t>(num_nodes);
  };
  std::vector<Index> seen;  // labels that have votes
  int64_t moved = 0;
  for (int64_t v = first; v < last; ++v) {
    seen.clear();
    for (int64_t e = indptr[v]; e < indptr[v + 1]; ++e) {
      if (e + kDistance < num_edges && is_node(indices[e + kDistance])) {
        __builtin_prefetch(labels.data() + indices[e + kDistance]);
      }
      if (!is_node(indices[e])) return -1 - e;
      const Index label = labels[indices[e]];
      if (votes[label]++ == 0) seen.push_back(label);
    }
    const Index own = labels[v];
    Index best = own;
    Index most_votes = votes[own];
    for (const Index label : seen) {
      if (label == own || votes[label] < most_votes || sizes[label] >= most) continue;
      if (votes[label] == most_votes && (best == own || mix(label, v) <= mix(best, v))) {
        continue;
      }
      best = label;
      most_votes = votes[label];
    }
    for (const Index label : seen) votes[label] = 0;
    if (best == own) continue;
    --sizes[own];
    ++sizes[best];
    labels[v] = best;
    ++moved;
  }
  return moved;
}

template <class Index>
void adopt_labels(std::span<const int64_t> indptr, std::span<const Index> indices, int64_t first,
                  int64_t last, std::span<Index> labels, std::span<Index> votes) {
  check(indices.size(), indptr, labels.size(), first, last);
  require(votes.size() == labels.size(), "adopt_labels: arrays of different lengths");
  for (int64_t v = first; v < last; ++v) {
    const Index label = labels[v];
    for (int64_t e = indptr[v]; e < indptr[v + 1]; ++e) {
      const Index source = indices[e];
      require(static_cast<uint64_t>(source) < labels.size(), "adopt_labels: an edge from no node");
      if (indptr[source] != indptr[source + 1]) continue;
      if (votes[source] == 0) {
        labels[source] = label;
        votes[source] = 1;
      } else {
        votes[source] += labels[source] == label ? 1 : -1;
      }
    }
  }
}

template int64_t propagate_labels(std::span<const int64_t>, std::span<const int32_t>, int64_t,
                                  int64_t, int64_t, std::span<int32_t>, std::span<int32_t>,
                                  std::span<int32_t>);
template int64_t propagate_labels(std::span<const int64_t>, std::span<const int64_t>, int64_t,
                                  int64_t, int64_t, std::span<int64_t>, std::span<int64_t>,
                                  std::span<int64_t>);
template void adopt_labels(std::span<const int64_t>, std::span<const int32_t>, int64_t, int64_t,
                           std::span<int32_t>, std::span<int32_t>);
template void adopt_labels(std::span<const int64_t>, std::span<const int64_t>, int64_t, int64_t,
                           std::span<int64_t>, std::span<int64_t>);

}  // namespace gnnsys
