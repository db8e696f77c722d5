#include "gnnsys/graph/edge_sort.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

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
int64_t count_targets(const Index* source, const Index* target, int64_t num_edges,
                      int64_t num_sources, int64_t num_targets, int64_t* counts) {
  for (int64_t e = 0; e < num_edges; ++e) {
    if (e + kDistance < num_edges) __builtin_prefetch(counts + target[e + kDistance], 1);
    const bool inside = static_cast<uint64_t>(source[e]) < static_cast<uint64_t>(num_sources) &&
                        static_cast<uint64_t>(target[e]) < static_cast<uint64_t>(num_targets);
    if (!inside) return e;
    ++counts[target[e]];
  }
  return -1;
}

template <class Index>
void split_edges(const Index* source, const Index* target, int64_t num_edges, const int64_t* bounds,
                 int64_t num_buckets, int64_t first_number, Index* source_out, Index* target_out,
                 int64_t* number_out, int64_t* sizes) {
  std::vector<uint32_t> bucket(static_cast<std::size_t>(num_edges));
  std::fill(sizes, sizes + num_buckets, 0);
  for (int64_t e = 0; e < num_edges; ++e) {
    const int64_t* above = std::upper_bound(bounds + 1, bounds + num_buckets, target[e]);
    bucket[e] = static_cast<uint32_t>(above - bounds - 1);
    ++sizes[bucket[e]];
  }
  std::vector<int64_t> next(static_cast<std::size_t>(num_buckets), 0);
  std::exclusive_scan(sizes, sizes + num_buckets, next.begin(), int64_t{0});
  for (int64_t e = 0; e < num_edges; ++e) {
    const int64_t at = next[bucket[e]]++;
    source_out[at] = source[e];
    target_out[at] = target[e];
    if (number_out) number_out[at] = first_number + e;
  }
}

template <class Index>
bool sort_edges(const Index* source, const Index* target, const int64_t* number, int64_t num_edges,
                int64_t first_target, int64_t num_targets, const int64_t* indptr, Index* indices,
                int64_t* number_out, ThreadPool& threads) {
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
    if (number) number_out[at] = number[e];
  }
  for (int64_t v = 0; v < num_targets; ++v) {
    if (next[v] != indptr[v + 1] - indptr[0]) return false;
  }
  parallel_for(threads, num_targets, kRows, [&](long begin, long end) {
    std::vector<NumberedEdge<Index>> scratch;
    for (long v = begin; v < end; ++v) {
      const int64_t first = indptr[v] - indptr[0];
      sort_row(indices + first, number ? number_out + first : nullptr, indptr[v + 1] - indptr[v],
               scratch);
    }
  });
  return true;
}

#define GNNSYS_INSTANTIATE(Index)                                                                \
  template int64_t count_targets<Index>(const Index*, const Index*, int64_t, int64_t, int64_t,   \
                                        int64_t*);                                               \
  template void split_edges<Index>(const Index*, const Index*, int64_t, const int64_t*, int64_t, \
                                   int64_t, Index*, Index*, int64_t*, int64_t*);                 \
  template bool sort_edges<Index>(const Index*, const Index*, const int64_t*, int64_t, int64_t,  \
                                  int64_t, const int64_t*, Index*, int64_t*, ThreadPool&);
GNNSYS_INSTANTIATE(int32_t)
GNNSYS_INSTANTIATE(int64_t)
#undef GNNSYS_INSTANTIATE

}  // namespace gnnsys
