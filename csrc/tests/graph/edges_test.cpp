// Edge lists in the order of a CSC, against one stable sort.
#include <algorithm>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "check.hpp"
#include "gnnsys/graph/edge_sort.hpp"
#include "gnnsys/graph/edges.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

struct Edges {
  std::vector<int32_t> source, target;
};

Edges random_edges(std::mt19937_64& random, int64_t nodes, int64_t count) {
  Edges edges;
  for (int64_t e = 0; e < count; ++e) {
    edges.source.push_back(static_cast<int32_t>(random() % nodes));
    edges.target.push_back(static_cast<int32_t>(random() % nodes));
  }
  return edges;
}

// Counted, split into buckets and sorted there, edges are those of one stable sort.
void edge_sorting_is_a_stable_sort(std::mt19937_64& random, ThreadPool& pool) {
  constexpr int64_t kNodes = 50, kEdges = 4000;
  const Edges edges = random_edges(random, kNodes, kEdges);
  std::vector<int64_t> order(kEdges);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::pair(edges.target[a], edges.source[a]) <
           std::pair(edges.target[b], edges.source[b]);
  });

  std::vector<int64_t> counts(kNodes);
  CHECK(count_targets<int32_t>(edges.source, edges.target, kNodes, counts) == -1);
  std::vector<int64_t> indptr(kNodes + 1);
  std::partial_sum(counts.begin(), counts.end(), indptr.begin() + 1);
  const std::vector<int64_t> bounds{0, 11, 11, 40, kNodes};
  std::vector<int32_t> source(kEdges), target(kEdges), indices(kEdges);
  std::vector<int64_t> number(kEdges), sorted(kEdges), sizes(4);
  split_edges<int32_t>(edges.source, edges.target, bounds, 0, source, target, number, sizes);
  for (int64_t bucket = 0, at = 0; bucket < 4; at += sizes[bucket++]) {
    const auto part = [&](auto& all) { return std::span(all).subspan(at, sizes[bucket]); };
    const std::span starts(indptr.begin() + bounds[bucket],
                           indptr.begin() + bounds[bucket + 1] + 1);
    CHECK(sort_edges<int32_t>(part(source), part(target), part(number), bounds[bucket], starts,
                              part(indices), part(sorted), pool));
  }
  CHECK(sorted == order);
  for (int64_t i = 0; i < kEdges; ++i) CHECK(indices[i] == edges.source[order[i]]);

  Edges bad = edges;
  bad.target[17] = kNodes;
  CHECK(count_targets<int32_t>(bad.source, bad.target, kNodes, counts) == 17);
}

void edges_are_grouped_stably(std::mt19937_64& random) {
  const Edges edges = random_edges(random, 20, 300);
  std::vector<int64_t> source(edges.source.begin(), edges.source.end());
  std::vector<int64_t> target(edges.target.begin(), edges.target.end());
  std::vector<int64_t> indptr(21), perm(300), order(300);
  std::vector<int32_t> indices(300);
  const auto group = [&] {
    return group_edges<int32_t, int64_t>(target, source, 20, indptr, indices, perm);
  };
  CHECK(group() == -1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return target[a] < target[b]; });
  CHECK(perm == order);
  for (int64_t i = 0; i < 300; ++i) CHECK(indices[i] == source[order[i]]);
  CHECK(find_indptr_fault(indptr, 300) == -1);
  indptr[5] = 301;
  CHECK(find_indptr_fault(indptr, 300) == 5);
  target[9] = -1;
  CHECK(group() == 9);
  target[9] = 0;
  source[7] = 20;
  CHECK(group() == 7);
}

void loops_stand_behind_the_edges_of_their_target() {
  // Grouped by target 0 | 1 | 2: sources 2 0, none, 2 1 2.
  const std::vector<int64_t> indptr{0, 2, 2, 5};
  const std::vector<int32_t> sources{2, 0, 2, 1, 2}, numbers{1, 4, 0, 2, 3};
  std::vector<int64_t> starts(5), source(9), target(9), number(9);
  const auto [count, max_source, max_target] =
      add_loops<int32_t>(indptr, sources, numbers, 4, true, starts, source, target, number);
  CHECK(count == 6 && max_source == 3 && max_target == 3);
  const auto starts_with = [](std::vector<int64_t> all, std::initializer_list<int64_t> expected) {
    return std::equal(expected.begin(), expected.end(), all.begin());
  };
  CHECK(starts_with(starts, {0, 2, 3, 5, 6}));
  CHECK(starts_with(source, {2, 0, 1, 1, 2, 3}));
  CHECK(starts_with(target, {0, 0, 1, 2, 2, 3}));
  CHECK(starts_with(number, {1, 4, -1, 2, 3, -1}));
}

}  // namespace

void test_edges() {
  std::mt19937_64 random(4);
  ThreadPool pool(2);
  edge_sorting_is_a_stable_sort(random, pool);
  edges_are_grouped_stably(random);
  loops_stand_behind_the_edges_of_their_target();
}

}  // namespace gnnsys::test
