#include "gnnsys/graph/edges.hpp"

#include <algorithm>
#include <numeric>

#include "gnnsys/errors.hpp"

namespace gnnsys {

EdgeScan scan_edges(std::span<const int64_t> source, std::span<const int64_t> target) {
  require(source.size() == target.size(), "scan_edges: arrays of different lengths");
  if (source.empty()) return {true, 0, -1, 0, -1};
  bool sorted = true;
  int64_t min_source = source[0], max_source = source[0];
  int64_t min_target = target[0], max_target = target[0];
  for (std::size_t e = 1; e < source.size(); ++e) {
    min_source = std::min(min_source, source[e]);
    max_source = std::max(max_source, source[e]);
    min_target = std::min(min_target, target[e]);
    max_target = std::max(max_target, target[e]);
    sorted &= target[e - 1] <= target[e];
  }
  return {sorted, min_source, max_source, min_target, max_target};
}

void count_sorted(std::span<const int64_t> target, std::span<int64_t> indptr) {
  const auto num_targets = static_cast<int64_t>(indptr.size()) - 1;
  require(
      num_targets >= 0 && (target.empty() || (target.front() >= 0 && target.back() < num_targets)),
      "count_sorted: a target outside indptr");
  const auto num_edges = static_cast<int64_t>(target.size());
  int64_t next = 0;  // the first target whose entry is not written yet
  for (int64_t e = 0; e < num_edges; ++e) {
    while (next <= target[e]) indptr[next++] = e;
  }
  while (next <= num_targets) indptr[next++] = num_edges;
}

template <class Id, class Order>
int64_t group_edges(std::span<const int64_t> key, std::span<const int64_t> value,
                    int64_t num_values, std::span<int64_t> indptr, std::span<Id> value_out,
                    std::span<Order> order_out) {
  const std::size_t edges = key.size();
  require(value.size() == edges && value_out.size() == edges && order_out.size() == edges &&
              !indptr.empty(),
          "group_edges: arrays of different lengths");
  const auto num_keys = static_cast<int64_t>(indptr.size()) - 1;
  const auto inside = [](int64_t id, int64_t end) {
    return static_cast<uint64_t>(id) < static_cast<uint64_t>(end);
  };
  // Counted two places up, summed one place up: filling then moves each entry to its final value.
  std::fill(indptr.begin(), indptr.end(), 0);
  for (std::size_t e = 0; e < edges; ++e) {
    if (!inside(key[e], num_keys) || !inside(value[e], num_values)) return static_cast<int64_t>(e);
    if (key[e] + 2 <= num_keys) ++indptr[key[e] + 2];
  }
  std::partial_sum(indptr.begin(), indptr.end(), indptr.begin());
  for (std::size_t e = 0; e < edges; ++e) {
    const int64_t at = indptr[key[e] + 1]++;
    value_out[at] = static_cast<Id>(value[e]);
    order_out[at] = static_cast<Order>(e);
  }
  return -1;
}

template <class Id>
LoopedSize add_loops(std::span<const int64_t> indptr, std::span<const Id> source,
                     std::span<const Id> order, int64_t num_nodes, bool keep,
                     std::span<int64_t> indptr_out, std::span<int64_t> source_out,
                     std::span<int64_t> target_out, std::span<int64_t> number_out) {
  const auto num_targets = static_cast<int64_t>(indptr.size()) - 1;
  const auto num_edges = static_cast<int64_t>(source.size());
  const auto num_out = static_cast<int64_t>(indptr_out.size()) - 1;
  const auto room = static_cast<std::size_t>(num_edges + num_nodes);
  require(num_targets >= 0 && num_nodes >= 0 && num_out == std::max(num_targets, num_nodes) &&
              (order.empty() || order.size() == source.size()) && source_out.size() == room &&
              target_out.size() == room && number_out.size() == room &&
              find_indptr_fault(indptr, num_edges) == -1,
          "add_loops: arrays that do not fit each other");
  int64_t at = 0, max_source = -1, max_target = -1;
  const auto write = [&](int64_t s, int64_t t, int64_t number) {
    source_out[at] = s;
    target_out[at] = t;
    number_out[at++] = number;
    max_source = std::max(max_source, s);
    max_target = t;
  };
  for (int64_t t = 0; t < num_out; ++t) {
    indptr_out[t] = at;
    int64_t loop = -1;
    const int64_t end = t < num_targets ? indptr[t + 1] : 0;
    for (int64_t e = t < num_targets ? indptr[t] : 0; e < end; ++e) {
      const int64_t number = order.empty() ? e : static_cast<int64_t>(order[e]);
      if (source[e] == t) {
        loop = number;
      } else {
        write(source[e], t, number);
      }
    }
    if (t < num_nodes) write(t, t, keep ? loop : -1);
  }
  indptr_out[num_out] = at;
  return {at, max_source, max_target};
}

int64_t find_indptr_fault(std::span<const int64_t> indptr, int64_t num_edges) {
  if (indptr.empty() || indptr[0] != 0) return 0;
  for (std::size_t v = 1; v < indptr.size(); ++v) {
    if (indptr[v] < indptr[v - 1] || indptr[v] > num_edges) return static_cast<int64_t>(v);
  }
  return indptr.back() == num_edges ? -1 : static_cast<int64_t>(indptr.size()) - 1;
}

#define GNNSYS_INSTANTIATE(Id, Order)                                                         \
  template int64_t group_edges<Id, Order>(std::span<const int64_t>, std::span<const int64_t>, \
                                          int64_t, std::span<int64_t>, std::span<Id>,         \
                                          std::span<Order>);
#define GNNSYS_INSTANTIATE_LOOPS(Id)                                                        \
  template LoopedSize add_loops<Id>(std::span<const int64_t>, std::span<const Id>,          \
                                    std::span<const Id>, int64_t, bool, std::span<int64_t>, \
                                    std::span<int64_t>, std::span<int64_t>, std::span<int64_t>);
GNNSYS_INSTANTIATE_LOOPS(int32_t)
GNNSYS_INSTANTIATE_LOOPS(int64_t)
#undef GNNSYS_INSTANTIATE_LOOPS
GNNSYS_INSTANTIATE(int32_t, int32_t)
GNNSYS_INSTANTIATE(int32_t, int64_t)
GNNSYS_INSTANTIATE(int64_t, int64_t)
#undef GNNSYS_INSTANTIATE

}  // namespace gnnsys
