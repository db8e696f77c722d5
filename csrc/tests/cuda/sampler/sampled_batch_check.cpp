// A batch of several hops by all kernels of the sampler, against one made node by node.
#include <numeric>
#include <unordered_map>
#include <vector>

#include "cuda/sampler/relabel.cuh"
#include "launches.hpp"
#include "reference.hpp"
#include "tables.hpp"

namespace {

using namespace gnnsys::cuda;
using simt::draw;
using simt::Exact;

template <class Index>
struct Graph {
  std::vector<i64> indptr{0};
  std::vector<Index> indices;
  i64 nodes() const { return static_cast<i64>(indptr.size()) - 1; }
};

struct Request {
  std::vector<i64> seeds, fanouts;
  bool replace;
  u64 seed, epoch, group;
};

struct Batch {
  std::vector<i64> node, row, col, edge, nodes_per_hop, edges_per_hop;
  bool operator==(const Batch&) const = default;
};

template <class Index>
Batch sample_by_reference(const Graph<Index>& graph, const Request& request) {
  Batch batch;
  std::unordered_map<i64, i64> place;
  for (i64 seed : request.seeds) {
    place.emplace(seed, static_cast<i64>(batch.node.size()));
    batch.node.push_back(seed);
  }
  std::size_t begin = 0, end = batch.node.size();
  batch.nodes_per_hop.push_back(static_cast<i64>(end));
  for (std::size_t hop = 0; hop < request.fanouts.size(); ++hop) {
    const u64 key = gnnsys::stream_key(request.seed, request.epoch, request.group, hop, 0);
    const std::size_t edges = batch.edge.size();
    for (std::size_t target = begin; target < end; ++target) {
      const i64 node = batch.node[target], first = graph.indptr[node];
      for (u32 position :
           reference::sample_positions(key, static_cast<u64>(node), graph.indptr[node + 1] - first,
                                       request.fanouts[hop], request.replace)) {
        const i64 source = graph.indices[first + position];
        const auto [at, fresh] = place.emplace(source, static_cast<i64>(batch.node.size()));
        if (fresh) batch.node.push_back(source);
        batch.edge.push_back(first + position);
        batch.row.push_back(at->second);
        batch.col.push_back(static_cast<i64>(target));
      }
    }
    begin = end;
    end = batch.node.size();
    batch.nodes_per_hop.push_back(static_cast<i64>(end - begin));
    batch.edges_per_hop.push_back(static_cast<i64>(batch.edge.size() - edges));
  }
  return batch;
}

template <class T>
void append(std::vector<T>& to, const Exact<T>& from) {
  const std::vector<T> more = from.copy();
  to.insert(to.end(), more.begin(), more.end());
}

template <class Index>
Batch sample_by_kernels(simt::Random& random, const Graph<Index>& graph, const Request& request) {
  Batch batch;
  Exact<u32> fault(std::vector<u32>{0, 0, 0});
  const auto run = [&](auto* kernel, auto... arguments) {
    simt::launch(launches::some_blocks(random), {64}, kernel, arguments...);
  };
  const Exact<i64> indptr(graph.indptr);
  const Exact<Index> indices(graph.indices);
  Exact<i64> node(request.seeds);
  tables::Table table(tables::capacity_for(node.size()));
  const auto add_all = [&] {
    run(add_nodes<i64>, table.view(), node.data(), static_cast<i64>(node.size()), 0, nullptr,
        fault.data());
  };
  add_all();
  i64 begin = 0;
  batch.nodes_per_hop.push_back(static_cast<i64>(node.size()));
  for (std::size_t hop = 0; hop < request.fanouts.size(); ++hop) {
    const i64 end = static_cast<i64>(node.size()), n = end - begin;
    const Choice choice{request.fanouts[hop], request.replace};
    const Stream stream{request.seed, request.epoch, request.group, hop, 0};
    const i64* targets = node.data() + begin;
    Exact<i64> first(n), count(n);
    Exact<u32> degree(n);
    run(count_edges, indptr.data(), graph.nodes(), graph.indptr.back(), targets, n, choice,
        first.data(), degree.data(), count.data(), fault.data());
    const Exact<i64> offsets = launches::prefix_sum(random, count.data(), n);
    const i64 edges = offsets[n];
    Exact<i64> position(edges), col(edges), row(edges);
    Exact<Index> source(edges);
    if (choice.fanout > 0) {
      launches::pick(random,
                     {targets, first.data(), degree.data(), offsets.data(), n, choice, stream},
                     position.data());
    }
    run(read_neighbors<Index>, indices.data(), graph.nodes(), first.data(), degree.data(),
        offsets.data(), n, choice, begin, position.data(), source.data(), col.data(), fault.data());

    if (const std::size_t ids = node.size() + edges; table.size() < 2 * ids) {
      table = tables::Table(tables::capacity_for(ids));
      add_all();
    }
    Exact<u32> entry(edges);
    Exact<u8> is_new(edges);
    run(add_nodes<Index>, table.view(), source.data(), edges, end, entry.data(), fault.data());
    run(mark_new, table.view(), entry.data(), edges, end, is_new.data());
    const Exact<i64> new_before = launches::prefix_sum(random, is_new.data(), edges);
    Exact<i64> longer(end + new_before[edges]);
    std::copy(node.data(), node.data() + end, longer.data());
    run(place_new_nodes<Index>, table.view(), source.data(), entry.data(), new_before.data(), edges,
        end, longer.data());
    node = std::move(longer);
    run(read_places, table.view(), entry.data(), edges, row.data());
    append(batch.row, row);
    append(batch.col, col);
    append(batch.edge, position);
    batch.nodes_per_hop.push_back(new_before[edges]);
    batch.edges_per_hop.push_back(edges);
    begin = end;
  }
  EXPECT(fault[0] == 0, "a fault");
  batch.node = node.copy();
  return batch;
}

template <class Index>
void check_batch(simt::Random& random, const Graph<Index>& graph, i64 seeds,
                 const std::vector<i64>& fanouts, bool replace) {
  Request request{std::vector<i64>(seeds), fanouts, replace, random(), random() % 5, random()};
  for (i64& seed : request.seeds) seed = draw(random, 0, graph.nodes() - 1);  // some repeat
  EXPECT(sample_by_kernels(random, graph, request) == sample_by_reference(graph, request),
         "%lld seeds, %zu hops", static_cast<long long>(seeds), fanouts.size());
}

// Mostly nodes of a few neighbours, some of none, and hubs, which are neighbours of many.
template <class Index>
Graph<Index> make_graph(simt::Random& random, i64 nodes, i64 hub) {
  Graph<Index> graph;
  for (i64 v = 0; v < nodes; ++v) {
    const i64 degree = v % 50 == 0 ? hub : v % 7 == 0 ? 0 : draw(random, 1, 12);
    for (i64 i = 0; i < degree; ++i) {
      const i64 node = draw(random, 0, nodes - 1);
      graph.indices.push_back(static_cast<Index>(i % 3 == 0 ? node / 50 * 50 : node));
    }
    graph.indptr.push_back(static_cast<i64>(graph.indices.size()));
  }
  return graph;
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  if (tiny) return check_batch(random, make_graph<i32>(random, 60, 40), 3, {4, 2}, false);
  const auto narrow = make_graph<i32>(random, 2000, 1100);
  const auto wide = make_graph<i64>(random, 500, 90);
  check_batch(random, narrow, 20, {10, 5}, false);
  check_batch(random, narrow, 5, {4, 3, 2}, true);
  check_batch(random, narrow, 1, {-1, 2}, false);
  check_batch(random, narrow, 0, {3, 3}, false);
  check_batch(random, wide, 33, {40, 0, 5}, false);
  check_batch(random, wide, 200, {2}, true);  // many seeds are the same
  check_batch(random, wide, 10, {}, false);
}
