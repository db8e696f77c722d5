#include "gnnsys/graph/edge_sort.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gnnsys/errors.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kDistance = 32;  // how far ahead of their use scattered places are prefetched
constexpr int64_t kRows = 4096;    // targets that a thread sorts at a time

template <class Index>
struct NumberedEdge {
  Index source;
  int64_t number;
  bool operator<(const NumberedEdge& other) const {
    return source < other.source || (source == other.source && number < other.number);
  }
};

// Numbers ascend within a row before it is sorted, so sorting by (source, number) is stable.
template <class Index>
void sort_row(Index* source, int64_t* number, int64_t n,
              std::vector<NumberedEdge<Index>>& scratch) {
  if (!number) {
    std::sort(source, source + n);
    return;
  }
  scratch.resize(static_cast<std::size_t>(n));
  for (int64_t i = 0; i < n; ++i) scratch[i] = {source[i], number[i]};
  std::sort(scratch.begin(), scratch.end());
  for (int64_t i = 0; i < n; ++i) {
    source[i] = scratch[i].source;
    number[i] = scratch[i].number;
  }
}

}  // namespace

template <class Index>
int64_t count_targets(std::span<const Index> source, std::span<const Index> target,
                      int64_t num_sources, std::span<int64_t> counts) {
  require(source.size() == target.size(), "count_targets: arrays of different lengths");
  const auto num_edges = static_cast<int64_t>(source.size());
  for (int64_t e = 0; e < num_edges; ++e) {
    if (e + kDistance < num_edges) __builtin_prefetch(counts.data() + target[e + kDistance], 1);
    const bool inside = static_cast<uint64_t>(source[e]) < static_cast<uint64_t>(num_sources) &&
                        static_cast<uint64_t>(target[e]) < counts.size();
    if (!inside) return e;
    ++counts[target[e]];
  }
  return -1;
}

template <class Index>
void split_edges(std::span<const Index> source, std::span<const Index> target,
                 std::span<const int64_t> bounds, int64_t first_number, std::span<Index> source_out,
                 std::span<Index> target_out, std::span<int64_t> number_out,
                 std::span<int64_t> sizes) {
  const std::size_t edges = source.size();
  require(target.size() == edges && source_out.size() == edges && target_out.size() == edges &&
              (number_out.empty() || number_out.size() == edges) && !sizes.empty() &&
              bounds.size() == sizes.size() + 1,
          "split_edges: arrays of different lengths");
  std::vector<uint32_t> bucket(edges);
  std::fill(sizes.begin(), sizes.end(), 0);
  for (std::size_t e = 0; e < edges; ++e) {
    const auto above = std::upper_bound(bounds.begin() + 1, bounds.end() - 1, target[e]);
    bucket[e] = static_cast<uint32_t>(above - bounds.begin() - 1);
    ++sizes[bucket[e]];
  }
  std::vector<int64_t> next(sizes.size());
  std::exclusive_scan(sizes.begin(), sizes.end(), next.begin(), int64_t{0});
  for (std::size_t e = 0; e < edges; ++e) {
    const int64_t at = next[bucket[e]]++;
    source_out[at] = source[e];
    target_out[at] = target[e];
    if (!number_out.empty()) number_out[at] = first_number + static_cast<int64_t>(e);
  }
}

template <class Index>
bool sort_edges(std::span<const Index> source, std::span<const Index> target,
                std::span<const int64_t> number, int64_t first_target,
                std::span<const int64_t> indptr, std::span<Index> indices,
                std::span<int64_t> number_out, const ThreadPool& threads) {
  require(target.size() == source.size() && indices.size() == source.size() && !indptr.empty() &&
              number.size() == number_out.size() &&
              (number.empty() || number.size() == source.size()),
          "sort_edges: arrays of different lengths");
  const auto num_edges = static_cast<int64_t>(source.size());
  require(indptr.back() - indptr.front() == num_edges,
          "sort_edges: indptr does not hold these edges");
  const auto num_targets = static_cast<int64_t>(indptr.size()) - 1;
  std::vector<int64_t> next(static_cast<std::size_t>(num_targets));
  for (int64_t v = 0; v < num_targets; ++v) next[v] = indptr[v] - indptr[0];
  for (int64_t e = 0; e < num_edges; ++e) {
    if (e + kDistance < num_edges) {
      __builtin_prefetch(next.data() + (target[e + kDistance] - first_target), 1);
    }
    const uint64_t row = static_cast<uint64_t>(target[e]) - static_cast<uint64_t>(first_target);
    if (row >= static_cast<uint64_t>(num_targets)) return false;
    const int64_t at = next[row]++;
    if (at < 0 || at >= num_edges) return false;
    indices[at] = source[e];
    if (!number.empty()) number_out[at] = number[e];
  }
  for (int64_t v = 0; v < num_targets; ++v) {
    if (next[v] != indptr[v + 1] - indptr[0]) return false;
  }
  parallel_for(threads, num_targets, kRows, [&](long begin, long end) {
    std::vector<NumberedEdge<Index>> scratch;
    for (long v = begin; v < end; ++v) {
      const int64_t first = indptr[v] - indptr[0];
      sort_row(indices.data() + first, number.empty() ? nullptr : number_out.data() + first,
               indptr[v + 1] - indptr[v], scratch);
    }
  });
  return true;
}

#define GNNSYS_INSTANTIATE(Index)                                                                \
  template int64_t count_targets<Index>(std::span<const Index>, std::span<const Index>, int64_t, \
                                        std::span<int64_t>);                                     \
  template void split_edges<Index>(std::span<const Index>, std::span<const Index>,               \
                                   std::span<const int64_t>, int64_t, std::span<Index>,          \
                                   std::span<Index>, std::span<int64_t>, std::span<int64_t>);    \
  template bool sort_edges<Index>(std::span<const Index>, std::span<const Index>,                \
                                  std::span<const int64_t>, int64_t, std::span<const int64_t>,   \
                                  std::span<Index>, std::span<int64_t>, const ThreadPool&);
GNNSYS_INSTANTIATE(int32_t)
GNNSYS_INSTANTIATE(int64_t)
#undef GNNSYS_INSTANTIATE

}  // namespace gnnsys
