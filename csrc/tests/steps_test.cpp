// The steps around sampling, each against a few plain lines: gather, edge sorting, the plain
// sampler.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "gnnsys/graph/edge_sort.hpp"
#include "gnnsys/graph/topology.hpp"
#include "gnnsys/rows/gather.hpp"
#include "gnnsys/sampler/sampler.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

template <class Id>
void gather_copies_rows(std::mt19937_64& random, ThreadPool& pool) {
  for (int64_t row_bytes : {1, 3, 4, 16, 64, 100, 256, 1028}) {
    for (int64_t rows : {1, 7, 300}) {
      const int64_t stride = row_bytes + static_cast<int64_t>(random() % 2) * 12;
      std::vector<char> table((rows - 1) * stride + row_bytes);
      for (char& byte : table) byte = static_cast<char>(random());
      std::vector<Id> ids(1000);
      for (Id& id : ids) id = static_cast<Id>(random() % rows);
      for (Isa isa : supported_isas()) {
        std::vector<char> out(ids.size() * row_bytes);
        const RowTable view{table.data(), rows, row_bytes, stride};
        const auto n = static_cast<int64_t>(ids.size());
        CHECK(gather_rows(view, ids.data(), n, out.data(), pool, isa) == -1);
        for (int64_t i = 0; i < n; ++i) {
          CHECK(!std::memcmp(&out[i * row_bytes], &table[ids[i] * stride], row_bytes));
        }
        std::vector<Id> bad = ids;
        bad[500] = static_cast<Id>(rows);
        bad[900] = -1;
        CHECK(gather_rows(view, bad.data(), n, out.data(), pool, isa) == 500);
        CHECK(gather_rows(view, ids.data(), 0, out.data(), pool, isa) == -1);
      }
    }
  }
}

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

// Nodes of every degree that the picks treat differently: what is sampled is a part of the
// neighbourhood of the right size, the whole where the fanout allows.
void plain_samples_are_parts_of_neighbourhoods(std::mt19937_64& random) {
  std::vector<int64_t> indptr{0}, indices;
  for (int64_t degree : {0, 1, 5, 20, 63, 64, 65, 511, 513, 2000}) {
    for (int64_t e = 0; e < degree; ++e) indices.push_back(static_cast<int64_t>(random() % 10));
    indptr.push_back(static_cast<int64_t>(indices.size()));
  }
  const std::vector<int32_t> narrow(indices.begin(), indices.end());
  const auto edges = static_cast<int64_t>(indices.size());
  std::vector<int64_t> seeds(10);
  std::iota(seeds.begin(), seeds.end(), 0);
  for (Isa isa : supported_isas()) {
    Sampler wide({indptr.data(), indices.data(), true, 10, edges}, 2, isa);
    Sampler sampler({indptr.data(), narrow.data(), false, 10, edges}, 2, isa);
    for (int64_t fanout : {-1, 0, 1, 4, 8, 9, 16, 31, 32, 33, 100, 5000}) {
      for (bool replace : {false, true}) {
        const SampleRequest request{seeds.data(), 10, {fanout}, replace, 1, 2, 3};
        const SampledBatch batch = sampler.sample(request), same = wide.sample(request);
        CHECK(batch.edge.size == same.edge.size);
        CHECK(std::equal(batch.edge.data(), batch.edge.data() + batch.edge.size, same.edge.data()));
        std::vector<int64_t> found(10);
        for (int64_t e = 0; e < batch.edge.size; ++e) {
          const int64_t v = batch.col.data()[e], at = batch.edge.data()[e];
          ++found[v];
          CHECK(indptr[v] <= at && at < indptr[v + 1]);
          CHECK(e == 0 || batch.col.data()[e - 1] != v ||
                batch.edge.data()[e - 1] < at + (replace ? 1 : 0));
          CHECK(batch.node.data()[batch.row.data()[e]] == indices[at]);
        }
        for (int64_t v = 0; v < 10; ++v) {
          const int64_t degree = indptr[v + 1] - indptr[v];
          const int64_t expected = fanout < 0              ? degree
                                   : replace && degree > 0 ? fanout
                                                           : std::min(fanout, degree);
          CHECK(found[v] == expected);
        }
      }
    }
    seeds[3] = 10;
    message_of<std::out_of_range>([&] { sampler.sample({seeds.data(), 10, {1}, false, 1, 2, 3}); });
    seeds[3] = 3;
    indices[6] = 10;
    message_of<std::runtime_error>([&] { wide.sample({seeds.data(), 10, {-1}, false, 1, 2, 3}); });
    indices[6] = narrow[6];
  }
}

}  // namespace

void test_steps() {
  std::mt19937_64 random(4);
  ThreadPool pool(2);
  gather_copies_rows<int32_t>(random, pool);
  gather_copies_rows<int64_t>(random, pool);
  edge_sorting_is_a_stable_sort(random, pool);
  coo_becomes_csc(random);
  plain_samples_are_parts_of_neighbourhoods(random);
}

}  // namespace gnnsys::test
