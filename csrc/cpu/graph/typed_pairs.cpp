#include "gnnsys/graph/typed_pairs.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "gnnsys/errors.hpp"

namespace gnnsys {
namespace {

bool inside(int64_t id, int64_t end) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(end);
}

}  // namespace

std::optional<bool> sort_by_type(std::span<const int64_t> source, std::span<const int64_t> target,
                                 std::span<const int64_t> type, int64_t num_sources,
                                 int64_t num_targets, std::span<int64_t> type_ptr,
                                 std::span<int64_t> source_out, std::span<int64_t> target_out,
                                 std::span<int64_t> order_out) {
  const std::size_t edges = type.size();
  require(source.size() == edges && target.size() == edges && source_out.size() == edges &&
              target_out.size() == edges && order_out.size() == edges && !type_ptr.empty(),
          "sort_by_type: arrays of different lengths");
  const auto num_types = static_cast<int64_t>(type_ptr.size()) - 1;
  // Counted two places up, summed one place up: filling then moves each entry to its final value.
  std::fill(type_ptr.begin(), type_ptr.end(), 0);
  bool ascend = true;
  int64_t last = 0;
  for (std::size_t e = 0; e < edges; ++e) {
    if (!inside(type[e], num_types) || !inside(source[e], num_sources) ||
        !inside(target[e], num_targets)) {
      return std::nullopt;
    }
    ascend &= last <= type[e];
    last = type[e];
    if (last + 2 <= num_types) ++type_ptr[last + 2];
  }
  std::partial_sum(type_ptr.begin(), type_ptr.end(), type_ptr.begin());
  for (std::size_t e = 0; e < edges; ++e) {
    const int64_t at = type_ptr[type[e] + 1]++;
    source_out[at] = source[e];
    target_out[at] = target[e];
    if (!ascend) order_out[at] = static_cast<int64_t>(e);
  }
  return ascend;
}

namespace {

template <class Mark>
int64_t number(std::span<const int64_t> node, std::span<const int64_t> type_ptr, int64_t num_nodes,
               std::span<int64_t> pair_of_edge, std::span<int64_t> node_of_pair,
               std::span<int64_t> pair_ptr) {
  // Of each node the last of its pairs and 1: one of the present type if it is above all before.
  std::vector<Mark> marks(num_nodes);
  Mark pairs = 0;
  for (std::size_t t = 0; t + 1 < type_ptr.size(); ++t) {
    const Mark before = pairs;
    pair_ptr[t] = before;
    for (int64_t e = type_ptr[t]; e < type_ptr[t + 1]; ++e) {
      if (!inside(node[e], num_nodes)) throw std::out_of_range("number_pairs: a node is outside");
      Mark& mark = marks[node[e]];
      if (mark <= before) {
        node_of_pair[pairs] = node[e];
        mark = ++pairs;
      }
      pair_of_edge[e] = mark - 1;
    }
  }
  return pair_ptr.back() = pairs;
}

}  // namespace

int64_t number_pairs(std::span<const int64_t> node, std::span<const int64_t> type_ptr,
                     int64_t num_nodes, std::span<int64_t> pair_of_edge,
                     std::span<int64_t> node_of_pair, std::span<int64_t> pair_ptr) {
  const std::size_t edges = node.size();
  require(pair_of_edge.size() == edges && node_of_pair.size() == edges && !type_ptr.empty() &&
              pair_ptr.size() == type_ptr.size() && type_ptr.front() == 0 &&
              type_ptr.back() == static_cast<int64_t>(edges) &&
              std::is_sorted(type_ptr.begin(), type_ptr.end()),
          "number_pairs: arrays that do not fit each other");
  // Marks of half the size stay in a nearer cache.
  const bool is_small = edges <= std::numeric_limits<uint32_t>::max();
  const auto number_them = is_small ? number<uint32_t> : number<uint64_t>;
  return number_them(node, type_ptr, num_nodes, pair_of_edge, node_of_pair, pair_ptr);
}

}  // namespace gnnsys
