// Sampler against the brute force of typed_reference.cpp, and its answers to bad input.
#include "gnnsys/sampler/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "sampler/node_places.hpp"
#include "sampler/typed_reference.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

std::vector<int64_t> list_of(const IdArray& array) {
  return {array.data(), array.data() + array.size};
}

std::vector<int64_t> row_of(const EdgeIndex& array) {
  return {array.data(), array.data() + array.size / 2};
}

std::vector<int64_t> col_of(const EdgeIndex& array) {
  return {array.data() + array.size / 2, array.data() + array.size};
}

void check_equal(const TypedBatch& batch, const SlowBatch& expected, bool disjoint) {
  CHECK(batch.batch.size() == (disjoint ? expected.batch.size() : 0));
  for (std::size_t t = 0; t < expected.node.size(); ++t) {
    CHECK(list_of(batch.node[t]) == expected.node[t]);
    CHECK(!disjoint || list_of(batch.batch[t]) == expected.batch[t]);
  }
  for (std::size_t r = 0; r < expected.edge.size(); ++r) {
    CHECK(row_of(batch.edge_index[r]) == expected.row[r]);
    CHECK(col_of(batch.edge_index[r]) == expected.col[r]);
    CHECK(list_of(batch.edge[r]) == expected.edge[r]);
  }
  CHECK(batch.nodes_per_hop == expected.nodes_per_hop);
  CHECK(batch.edges_per_hop == expected.edges_per_hop);
}

void batches_equal_the_reference() {
  std::mt19937_64 random(1);
  for (int round = 0; round < 25; ++round) {
    for (Kind kind : {Kind::plain, Kind::weight, Kind::node_time, Kind::edge_time}) {
      const SmallGraph graph = random_graph(random, kind);
      for (Isa isa : supported_isas()) {
        Sampler sampler(graph.view(), 1 + round % 3, isa);
        for (bool labor : {false, true}) {
          if (labor && kind == Kind::weight) continue;
          const SmallRequest request = random_request(random, graph, kind, labor);
          check_equal(sampler.sample(request.view()), sample_slowly(graph, request),
                      request.options.disjoint);
        }
      }
    }
  }
}

// Nodes beyond those that the arrays have: none of them is sampled.
TypedGraph with_many_nodes(TypedGraph graph) {
  for (int64_t& nodes : graph.num_nodes) nodes += NodePlaces::kHashed;
  return graph;
}

void batches_of_few_of_many_nodes_equal_the_reference() {
  std::mt19937_64 random(7);
  for (int round = 0; round < 10; ++round) {
    const SmallGraph graph = random_graph(random, Kind::plain);
    Sampler sampler(with_many_nodes(graph.view()), 1 + round % 3, supported_isas().back());
    for (int request_number = 0; request_number < 8; ++request_number) {
      const SmallRequest request = random_request(random, graph, Kind::plain, request_number % 2);
      check_equal(sampler.sample(request.view()), sample_slowly(graph, request),
                  request.options.disjoint);
    }
  }
}

// Also past the end of the labels, where the map is emptied.
void hashed_places_are_numbers_of_first_occurrence() {
  std::mt19937_64 random(8);
  HashedPlaces places;
  for (int64_t batch = 0; batch < 40; ++batch) {
    const int64_t most = int64_t{1} << 28;
    places.open(most);
    std::map<int64_t, int64_t> expected;
    std::vector<int64_t> node(301), nodes;
    for (int chunk = 0; chunk < 3; ++chunk) {
      std::vector<int64_t> neighbor(100), row(100);
      for (int64_t& v : neighbor) v = static_cast<int64_t>(random() % 150) * ((1 << 25) - 1);
      const auto before = static_cast<int64_t>(nodes.size());
      places.reserve(before + 100);
      const int64_t after = places.relabel(neighbor.data(), 100, before, node.data(), row.data());
      for (std::size_t e = 0; e < neighbor.size(); ++e) {
        const auto [known, fresh] = expected.try_emplace(neighbor[e], expected.size());
        if (fresh) nodes.push_back(neighbor[e]);
        CHECK(row[e] == known->second);
        CHECK(places.find(neighbor[e]) == known->second);
      }
      CHECK(after == static_cast<int64_t>(nodes.size()));
      CHECK(std::equal(nodes.begin(), nodes.end(), node.begin()));
    }
    CHECK(places.find(int64_t{150} * ((1 << 25) - 1)) == -1);
    places.close(most - 1);
  }
}

// All edges between nodes, by looking at each edge.
void induced_edges_are_those_between_the_nodes() {
  std::mt19937_64 random(2);
  for (int round = 0; round < 30; ++round) {
    const SmallGraph graph = random_graph(random, Kind::plain);
    std::vector<std::vector<int64_t>> nodes(3);
    std::vector<std::span<const int64_t>> view;
    for (int t = 0; t < 3; ++t) {
      for (uint64_t i = graph.num_nodes[t] ? random() % 200 : 0; i > 0; --i) {
        nodes[t].push_back(static_cast<int64_t>(random() % graph.num_nodes[t]));
      }
      view.emplace_back(nodes[t]);
    }
    const TypedGraph typed = round % 3 ? graph.view() : with_many_nodes(graph.view());
    Sampler sampler(typed, 1 + round % 2, supported_isas().back());
    const InducedEdges induced = sampler.induce(view);
    for (std::size_t r = 0; r < graph.relations.size(); ++r) {
      const SmallRelation& relation = graph.relations[r];
      const auto& sources = nodes[relation.source_type];
      const auto& targets = nodes[relation.target_type];
      std::map<int64_t, int64_t> place;
      for (std::size_t i = 0; i < sources.size(); ++i) {
        place.insert({sources[i], static_cast<int64_t>(i)});
      }
      std::vector<int64_t> row, col, edge;
      for (std::size_t i = 0; i < targets.size(); ++i) {
        for (int64_t e = relation.indptr[targets[i]]; e < relation.indptr[targets[i] + 1]; ++e) {
          const auto found = place.find(relation.indices[e]);
          if (found == place.end()) continue;
          row.push_back(found->second);
          col.push_back(static_cast<int64_t>(i));
          edge.push_back(e);
        }
      }
      CHECK(row_of(induced.edge_index[r]) == row);
      CHECK(col_of(induced.edge_index[r]) == col);
      CHECK(list_of(induced.edge[r]) == edge);
    }
  }
}

// Nodes 0 … nodes - 1, each with `degree` random in-neighbours.
SmallGraph regular_graph(int64_t nodes, int64_t degree) {
  std::mt19937_64 random(3);
  SmallRelation relation{0, 0, {0}, {}, {}, {}, {}, true, false, false};
  for (int64_t v = 0; v < nodes; ++v) {
    for (int64_t e = 0; e < degree; ++e) {
      relation.indices.push_back(static_cast<int64_t>(random() % nodes));
    }
    relation.indptr.push_back(static_cast<int64_t>(relation.indices.size()));
  }
  return {{nodes}, {{}}, {false}, {relation}};
}

SampleRequest request_for(const std::vector<int64_t>& ids, std::vector<int64_t> fanouts) {
  return {{{0, ids.data(), static_cast<int64_t>(ids.size()), nullptr}},
          {std::move(fanouts)},
          false,
          false,
          false,
          false,
          1,
          2,
          3};
}

// Batches of many chunks, whose parts go straight to their places.
void large_uniform_batches_equal_the_reference() {
  SmallGraph graph = regular_graph(3000, 70);
  SmallRelation& relation = graph.relations[0];
  relation.narrow.assign(relation.indices.begin(), relation.indices.end());
  SmallRequest request{
      {0}, {{}}, {{}}, {false}, {{}, {{10, -1}}, false, false, false, false, 1, 2, 3}};
  for (int64_t v = 0; v < 3000; v += 5) request.ids[0].push_back(v);
  for (bool replace : {false, true}) {
    request.options.replace = replace;
    const SlowBatch expected = sample_slowly(graph, request);
    for (Isa isa : supported_isas()) {
      for (bool wide : {false, true}) {
        relation.wide = wide;
        check_equal(Sampler(graph.view(), 2, isa).sample(request.view()), expected, false);
      }
    }
  }
}

// Nodes of every degree that the picks treat differently: what is sampled is a part of the
// neighbourhood of the right size, the whole where the fanout allows.
void samples_are_parts_of_neighbourhoods() {
  std::mt19937_64 random(4);
  std::vector<int64_t> indptr{0}, indices;
  for (int64_t degree : {0, 1, 5, 20, 63, 64, 65, 511, 513, 2000}) {
    for (int64_t e = 0; e < degree; ++e) indices.push_back(static_cast<int64_t>(random() % 10));
    indptr.push_back(static_cast<int64_t>(indices.size()));
  }
  const std::vector<int32_t> narrow(indices.begin(), indices.end());
  const auto edges = static_cast<int64_t>(indices.size());
  const auto view = [&](const void* data, bool wide) -> TypedGraph {
    return {{10}, {nullptr}, {{0, 0, indptr.data(), data, wide, edges, nullptr, nullptr}}};
  };
  std::vector<int64_t> seeds(10);
  std::iota(seeds.begin(), seeds.end(), 0);
  for (Isa isa : supported_isas()) {
    Sampler wide(view(indices.data(), true), 2, isa);
    Sampler sampler(view(narrow.data(), false), 2, isa);
    for (int64_t fanout : {-1, 0, 1, 4, 8, 9, 16, 31, 32, 33, 100, 5000}) {
      for (bool replace : {false, true}) {
        SampleRequest request = request_for(seeds, {fanout});
        request.replace = replace;
        const TypedBatch batch = sampler.sample(request);
        const std::vector<int64_t> edge = list_of(batch.edge[0]), row = row_of(batch.edge_index[0]),
                                   col = col_of(batch.edge_index[0]);
        CHECK(edge == list_of(wide.sample(request).edge[0]));
        std::vector<int64_t> found(10);
        for (std::size_t e = 0; e < edge.size(); ++e) {
          const int64_t v = col[e], at = edge[e];
          ++found[v];
          CHECK(indptr[v] <= at && at < indptr[v + 1]);
          CHECK(e == 0 || col[e - 1] != v || edge[e - 1] < at + (replace ? 1 : 0));
          CHECK(batch.node[0].data()[row[e]] == indices[at]);
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
  }
}

void threads_change_nothing() {
  const SmallGraph graph = regular_graph(3000, 30);
  std::vector<int64_t> seeds(1500);
  for (std::size_t i = 0; i < seeds.size(); ++i) seeds[i] = static_cast<int64_t>(2 * i);
  Sampler alone(graph.view(), 1, supported_isas().back());
  Sampler shared(graph.view(), 4, supported_isas().back());
  for (int option = 0; option < 3; ++option) {
    SampleRequest request = request_for(seeds, {5, 5});
    request.disjoint = option == 1;
    request.labor = option == 2;
    const TypedBatch expected = alone.sample(request), found = shared.sample(request);
    CHECK(list_of(found.node[0]) == list_of(expected.node[0]));
    CHECK(row_of(found.edge_index[0]) == row_of(expected.edge_index[0]));
    CHECK(list_of(found.edge[0]) == list_of(expected.edge[0]));
  }
}

void bad_graphs_are_refused() {
  const Isa isa = supported_isas().back();
  const std::vector<int64_t> seeds{0, 1, 2};
  SmallGraph graph = regular_graph(3, 4);
  for (int64_t bad : {int64_t{-1}, int64_t{3}, INT64_MIN, INT64_MAX}) {
    SmallGraph other = graph;
    other.relations[0].indices[7] = bad;
    Sampler sampler(other.view(), 2, isa);
    for (bool labor : {false, true}) {
      SampleRequest request = request_for(seeds, {-1});
      request.labor = labor;
      CHECK(contains(message_of<std::runtime_error>([&] { sampler.sample(request); }),
                     "at position 7"));
    }
    CHECK(contains(message_of<std::runtime_error>([&] { sampler.induce({seeds}); }),
                   "at position 7"));
  }
  for (int64_t bad : {int64_t{-1}, int64_t{9}, int64_t{13}, INT64_MIN, INT64_MAX}) {
    SmallGraph other = graph;
    other.relations[0].indptr[1] = bad;
    Sampler sampler(other.view(), 1, isa);
    for (bool labor : {false, true}) {
      SampleRequest request = request_for(seeds, {2});
      request.labor = labor;
      message_of<std::runtime_error>([&] { sampler.sample(request); });
    }
    message_of<std::runtime_error>([&] { sampler.induce({seeds}); });
    other.relations[0].weighted = true;
    other.relations[0].weight.assign(12, 1.0);
    message_of<std::invalid_argument>([&] { Sampler(other.view(), 1, isa); });
  }
  graph.relations[0].weighted = true;
  for (double bad : {-1.0, std::nan(""), HUGE_VAL, 1.7e308}) {
    graph.relations[0].weight.assign(12, 1.7e308 / 4);
    graph.relations[0].weight[5] = bad;
    CHECK(contains(message_of<std::invalid_argument>([&] { Sampler(graph.view(), 1, isa); }),
                   "relation 0: the weight at position"));
  }
}

void bad_requests_are_refused() {
  const SmallGraph graph = regular_graph(3, 4);
  Sampler sampler(graph.view(), 1, supported_isas().back());
  for (int64_t bad : {int64_t{-1}, int64_t{3}, INT64_MIN, INT64_MAX}) {
    const std::vector<int64_t> seeds{0, bad};
    CHECK(contains(message_of<std::out_of_range>([&] { sampler.sample(request_for(seeds, {1})); }),
                   "at position 1 is outside the graph's nodes [0, 3)"));
    message_of<std::out_of_range>([&] { sampler.induce({seeds}); });
  }
  const std::vector<int64_t> seeds{0, 1};
  for (int64_t bad : {int64_t{-2}, int64_t{1} << 24, INT64_MIN, INT64_MAX}) {
    message_of<std::invalid_argument>([&] { sampler.sample(request_for(seeds, {1, bad})); });
  }
  SampleRequest request = request_for(seeds, {1});
  request.fanouts.push_back({1});
  message_of<std::invalid_argument>([&] { sampler.sample(request); });
  request = request_for(seeds, {1});
  request.seeds[0].count = int64_t{1} << 31;  // refused before any is read
  CHECK(contains(message_of<std::invalid_argument>([&] { sampler.sample(request); }),
                 "2147483648 seeds, a batch takes less than 2^31"));
  request = request_for(seeds, {1});
  request.seeds[0].type = 1;
  message_of<std::invalid_argument>([&] { sampler.sample(request); });
  request = request_for(seeds, {1});
  request.seeds[0].times = seeds.data();
  request.disjoint = true;
  message_of<std::invalid_argument>([&] { sampler.sample(request); });
  const std::vector<std::vector<int64_t>> wrong{{-2}, {INT64_MIN}, {0}, {-1, -1}};
  for (const std::vector<int64_t>& bad : wrong) {
    request = request_for(seeds, {1});
    request.window = bad;
    message_of<std::invalid_argument>([&] { sampler.sample(request); });
    request.window = {-1};
    request.newest = bad;
    message_of<std::invalid_argument>([&] { sampler.sample(request); });
  }
  CHECK(list_of(sampler.sample(request_for(seeds, {0})).node[0]) == seeds);
}

// Also where ages are above 2^63.
void windows_reach_over_all_times() {
  SmallGraph graph = regular_graph(1, 5);
  graph.relations[0].timed = true;
  graph.relations[0].time = {INT64_MIN, INT64_MIN + 1, -1, 0, INT64_MAX};
  Sampler sampler(graph.view(), 1, supported_isas().back());
  const std::vector<int64_t> seeds{0};
  const auto sampled = [&](int64_t time, int64_t window) {
    SampleRequest request = request_for(seeds, {-1});
    request.disjoint = true;
    request.seeds[0].times = &time;
    request.window = {window};
    return list_of(sampler.sample(request).edge[0]);
  };
  CHECK(sampled(INT64_MAX, -1) == std::vector<int64_t>({0, 1, 2, 3, 4}));
  CHECK(sampled(INT64_MAX, INT64_MAX) == std::vector<int64_t>({3, 4}));
  CHECK(sampled(-1, INT64_MAX) == std::vector<int64_t>({0, 1, 2}));
  CHECK(sampled(0, INT64_MAX) == std::vector<int64_t>({1, 2, 3}));
  CHECK(sampled(INT64_MIN, 0) == std::vector<int64_t>({0}));
  CHECK(sampled(1, 0).empty());
}

}  // namespace

void test_sampler() {
  batches_equal_the_reference();
  batches_of_few_of_many_nodes_equal_the_reference();
  hashed_places_are_numbers_of_first_occurrence();
  induced_edges_are_those_between_the_nodes();
  large_uniform_batches_equal_the_reference();
  samples_are_parts_of_neighbourhoods();
  threads_change_nothing();
  bad_graphs_are_refused();
  bad_requests_are_refused();
  windows_reach_over_all_times();
}

}  // namespace gnnsys::test
