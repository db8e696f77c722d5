#include "cuda/sampler/sample_neighbors.cuh"

#include <vector>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 warns of its own header
#include "../../../cpu/draws.cpp"
#pragma GCC diagnostic pop
#include "launches.hpp"
#include "reference.hpp"

namespace {

using namespace gnnsys::cuda;
using simt::draw;
using simt::Exact;

constexpr i64 kNodeBase = (i64{1} << 33) + 5;  // of ids, and of positions in the CSC
constexpr i64 kEdgeBase = (i64{1} << 34) + 7;

// A graph of a few nodes far behind the first id, whose neighbours follow kEdgeBase others.
template <class Index>
struct Graph {
  Exact<i64> indptr;
  Exact<Index> indices;
  i64 num_nodes = sizeof(Index) == 4 ? i64{1} << 31 : kNodeBase + (i64{1} << 40);

  Graph(simt::Random& random, const std::vector<i64>& degrees)
      : indptr(sums_before(degrees)), indices(end() - kEdgeBase) {
    for (std::size_t i = 0; i < indices.size(); ++i) {
      indices[i] = static_cast<Index>(draw(random, 0, num_nodes - 1));
    }
  }
  static std::vector<i64> sums_before(const std::vector<i64>& degrees) {
    std::vector<i64> sums{kEdgeBase};
    for (i64 degree : degrees) sums.push_back(sums.back() + degree);
    return sums;
  }
  // So far before the arrays that ids and positions are what they are called.
  template <class T>
  static const T* back(const Exact<T>& array, i64 by) {
    return reinterpret_cast<const T*>(reinterpret_cast<std::uintptr_t>(array.data()) -
                                      static_cast<std::uintptr_t>(by) * sizeof(T));
  }
  i64 nodes() const { return static_cast<i64>(indptr.size()) - 1; }
  i64 end() const { return indptr[indptr.size() - 1]; }
};

template <class Index>
void check_hop(simt::Random& random, const Graph<Index>& graph, i64 n, Choice choice) {
  const Stream stream{random(), 1, random() >> 40, 2, 0};
  const u64 key =
      gnnsys::stream_key(stream.seed, stream.epoch, stream.group, stream.hop, stream.edge_type);
  Exact<i64> targets(n), first(n), count(n);
  Exact<u32> degree(n), fault(std::vector<u32>{0, 0, 0});
  std::vector<i64> positions, sources, cols, counts;
  for (i64 i = 0; i < n; ++i) {
    const i64 node = draw(random, 0, graph.nodes() - 1);
    targets[i] = kNodeBase + node;
    const i64 from = graph.indptr[node], edges = graph.indptr[node + 1] - from;
    const auto chosen =
        reference::sample_positions(key, targets[i], edges, choice.fanout, choice.replace != 0);
    counts.push_back(static_cast<i64>(chosen.size()));
    for (u32 position : chosen) {
      positions.push_back(from + position);
      sources.push_back(graph.indices[from - kEdgeBase + position]);
      cols.push_back(11 + i);
    }
  }
  const i64* indptr = Graph<Index>::back(graph.indptr, kNodeBase);
  const Index* indices = Graph<Index>::back(graph.indices, kEdgeBase);
  simt::launch(launches::some_blocks(random), {32}, count_edges, indptr, kNodeBase + graph.nodes(),
               graph.end(), targets.data(), n, choice, first.data(), degree.data(), count.data(),
               fault.data());
  EXPECT(count.copy() == counts, "counts of fanout %lld", static_cast<long long>(choice.fanout));
  const Exact<i64> offsets = launches::prefix_sum(random, count.data(), n);
  const i64 edges = offsets[n];
  Exact<i64> position(edges), col(edges);
  Exact<Index> source(edges);
  if (choice.fanout > 0) {
    launches::pick(random,
                   {targets.data(), first.data(), degree.data(), offsets.data(), n, choice, stream},
                   position.data());
  }
  simt::launch(launches::some_blocks(random), {32}, read_neighbors<Index>, indices, graph.num_nodes,
               first.data(), degree.data(), offsets.data(), n, choice, 11, position.data(),
               source.data(), col.data(), fault.data());
  const std::vector<Index> found = source.copy();
  EXPECT(position.copy() == positions && col.copy() == cols &&
             std::vector<i64>(found.begin(), found.end()) == sources,
         "edges of fanout %lld, replace %lld", static_cast<long long>(choice.fanout),
         static_cast<long long>(choice.replace));
  EXPECT(fault[0] == 0, "a fault");
}

// Picks of targets with any degrees, as the CPU's sampler makes them.
void check_picks(simt::Random& random, const std::vector<u32>& degrees, Choice choice) {
  const auto n = static_cast<i64>(degrees.size());
  const Stream stream{random(), random(), random(), 0, 0};
  Exact<i64> targets(n), first(n), offsets(n + 1);
  const Exact<u32> degree(degrees);
  offsets[0] = 0;
  for (i64 i = 0; i < n; ++i) {
    targets[i] = draw(random, 0, i64{1} << 62);
    first[i] = draw(random, 0, i64{1} << 50);
    offsets[i + 1] =
        offsets[i] + gnnsys::sampled_edges(degrees[i], choice.fanout, choice.replace != 0);
  }
  Exact<i64> position(offsets[n]);
  launches::pick(random,
                 {targets.data(), first.data(), degree.data(), offsets.data(), n, choice, stream},
                 position.data());
  const std::vector<int64_t> nodes(targets.data(), targets.data() + n);
  const std::vector<int64_t> begins(first.data(), first.data() + n);
  std::vector<int64_t> expected(offsets[n]);
  gnnsys::PickScratch scratch;
  gnnsys::choose_pick_positions(gnnsys::Isa::generic)(
      {gnnsys::stream_key(stream.seed, stream.epoch, stream.group, 0, 0), choice.fanout,
       choice.replace != 0, nodes.data(), nullptr, begins.data(), degrees.data()},
      0, n, scratch, expected.data());
  for (i64 i = 0; i < n; ++i) {
    if (!gnnsys::needs_draws(degrees[i], choice.fanout, choice.replace != 0)) continue;
    for (i64 e = offsets[i]; e < offsets[i + 1]; ++e) {
      EXPECT(position[e] == expected[e], "%lld of %u, replace %lld",
             static_cast<long long>(choice.fanout), degrees[i],
             static_cast<long long>(choice.replace));
    }
  }
}

void check_faults(simt::Random& random) {
  Graph<i64> graph(random, {3, 2, 4});
  const i64 good = graph.indptr[1];
  const auto fault_of = [&](i64 target, i64 num_edges) {
    const Exact<i64> targets(std::vector<i64>{target});
    Exact<i64> first(1), count(1);
    Exact<u32> degree(1), fault(std::vector<u32>{0, 0, 0});
    simt::launch({1}, {32}, count_edges, graph.indptr.data(), graph.nodes(), num_edges,
                 targets.data(), 1, Choice{2, 1}, first.data(), degree.data(), count.data(),
                 fault.data());
    EXPECT(count[0] == (fault[0] == 0 ? 2 : 0), "edges at a fault");
    EXPECT(fault[0] == 0 || fault[1] == static_cast<u32>(target), "the node at fault");
    return fault[0];
  };
  const i64 edges = graph.end();
  EXPECT(fault_of(0, edges) == 0 && fault_of(2, edges) == 0, "no fault");
  EXPECT(fault_of(-1, edges) == kIdOutOfRange && fault_of(3, edges) == kIdOutOfRange, "targets");
  EXPECT(fault_of(2, edges - 1) == kBadIndptr, "an end behind all edges");
  for (i64 bad : {i64{-1}, graph.indptr[2] + 1, graph.indptr[0] + kMaxDegree + 1}) {
    graph.indptr[1] = bad;
    EXPECT(fault_of(bad > graph.indptr[2] + 1 ? 0 : 1, i64{1} << 40) == kBadIndptr, "indptr");
  }
  graph.indptr[1] = good;
  const Exact<i64> nodes(std::vector<i64>{0, 5, -3, 7}), first(std::vector<i64>{0}),
      offsets(std::vector<i64>{0, 4});
  const Exact<u32> degree(std::vector<u32>{4});
  Exact<i64> position(4), source(4), col(4);
  for (i64 num_nodes : {8, 7}) {
    Exact<u32> fault(std::vector<u32>{0, 0, 0});
    simt::launch({1}, {1}, read_neighbors<i64>, nodes.data(), num_nodes, first.data(),
                 degree.data(), offsets.data(), 1, Choice{-1, 0}, 0, position.data(), source.data(),
                 col.data(), fault.data());
    EXPECT(fault[0] == kBadSource && fault[1] == static_cast<u32>(-3), "a source");
    EXPECT(source[1] == 5 && source[2] == 0 && source[3] == (num_nodes == 8 ? 7 : 0), "in place");
  }
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  if (tiny) {
    const Graph<i32> graph(random, {0, 5, 40, 70});
    for (Choice choice : {Choice{-1, 0}, Choice{5, 0}, Choice{6, 1}}) {
      check_hop(random, graph, 9, choice);
    }
    check_picks(random, {50, 51, 1000}, {48, 0});
    return;
  }
  const std::vector<i64> degrees{0, 1, 2, 3, 31, 32, 33, 64, 65, 200, 1023, 1024, 1025, 2500};
  const Graph<i32> narrow(random, degrees);
  const Graph<i64> wide(random, degrees);
  const std::vector<i64> fanouts{
      -1, 0, 1, 2, draw(random, 3, 8), draw(random, 9, 31), 32, 33, draw(random, 65, 300)};
  for (i64 fanout : fanouts) {
    check_hop(random, narrow, draw(random, 1, 40), {fanout, fanout & 1});
    check_hop(random, wide, draw(random, 0, 40), {fanout, ~fanout & 1});
  }
  check_hop(random, wide, 0, {3, 0});
  const std::vector<i64> drawn{1,
                               4,
                               draw(random, 5, 16),
                               draw(random, 17, 32),
                               32,
                               draw(random, 33, 64),
                               draw(random, 65, 500)};
  for (i64 fanout : drawn) {
    // Where nearly all are taken most draws meet; of huge degrees half the words are rejected.
    const auto k = static_cast<u32>(fanout);
    std::vector<u32> many{k + 1, k + 2, 0, 2 * k, 3, ~0u, (1u << 31) + 1, ~0u - k};
    for (int i = 0; i < 8; ++i) many.push_back(static_cast<u32>(draw(random, k, 4 * k)));
    check_picks(random, many, {fanout, 0});
    check_picks(random, many, {fanout, 1});
  }
  for (i64 replace : {0, 1}) check_picks(random, {2048, 2049}, {kMaxFanout, replace});
  check_faults(random);
}
