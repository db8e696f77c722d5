// Edge lists in the order of a CSC, against one stable sort.
#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "gnnsys/graph/edge_sort.hpp"
#include "gnnsys/graph/topology.hpp"
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
  CHECK(count_targets(edges.source.data(), edges.target.data(), kEdges, kNodes, kNodes,
                      counts.data()) == -1);
  std::vector<int64_t> indptr(kNodes + 1);
  std::partial_sum(counts.begin(), counts.end(), indptr.begin() + 1);
  const std::vector<int64_t> bounds{0, 11, 11, 40, kNodes};
  std::vector<int32_t> source(kEdges), target(kEdges), indices(kEdges);
  std::vector<int64_t> number(kEdges), sorted(kEdges), sizes(4);
  split_edges(edges.source.data(), edges.target.data(), kEdges, bounds.data(), 4, 0, source.data(),
              target.data(), number.data(), sizes.data());
  for (int64_t bucket = 0, at = 0; bucket < 4; at += sizes[bucket++]) {
    CHECK(sort_edges(source.data() + at, target.data() + at, number.data() + at, sizes[bucket],
                     bounds[bucket], bounds[bucket + 1] - bounds[bucket],
                     indptr.data() + bounds[bucket], indices.data() + at, sorted.data() + at,
                     pool));
  }
  CHECK(sorted == order);
  for (int64_t i = 0; i < kEdges; ++i) CHECK(indices[i] == edges.source[order[i]]);

  Edges bad = edges;
  bad.target[17] = kNodes;
  CHECK(count_targets(bad.source.data(), bad.target.data(), kEdges, kNodes, kNodes,
                      counts.data()) == 17);
}

void coo_becomes_csc(std::mt19937_64& random) {
  const Edges edges = random_edges(random, 20, 300);
  const std::vector<int64_t> source(edges.source.begin(), edges.source.end());
  std::vector<int64_t> target(edges.target.begin(), edges.target.end());
  std::vector<int64_t> indptr(21), perm(300), order(300);
  std::vector<int32_t> indices(300);
  coo_to_csc(source.data(), target.data(), 300, 20, indptr.data(), indices.data(), perm.data());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return target[a] < target[b]; });
  CHECK(perm == order);
  CHECK(find_indptr_fault(indptr.data(), 20, 300) == -1);
  indptr[5] = 301;
  CHECK(find_indptr_fault(indptr.data(), 20, 300) == 5);
  target[9] = -1;
  message_of<std::out_of_range>([&] {
    coo_to_csc(source.data(), target.data(), 300, 20, indptr.data(), indices.data(), perm.data());
  });
}

}  // namespace

void test_edges() {
  std::mt19937_64 random(4);
  ThreadPool pool(2);
  edge_sorting_is_a_stable_sort(random, pool);
  coo_becomes_csc(random);
}

}  // namespace gnnsys::test
