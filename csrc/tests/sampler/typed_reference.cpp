#include "sampler/typed_reference.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "gnnsys/philox.hpp"

namespace gnnsys::test {
namespace {

int64_t below(std::mt19937_64& random, int64_t n) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
}

template <class T>
T one_of(std::mt19937_64& random, std::initializer_list<T> values) {
  return values.begin()[below(random, static_cast<int64_t>(values.size()))];
}

SmallRelation random_relation(std::mt19937_64& random, const SmallGraph& graph, Kind kind,
                              int source, int target) {
  SmallRelation relation{source, target, {0}, {}, {}, {}, {}, random() % 2 == 0, false, false};
  relation.timed = kind == Kind::edge_time && random() % 4 != 0;
  relation.weighted = kind == Kind::weight && random() % 4 != 0;
  for (int64_t v = 0; v < graph.num_nodes[target]; ++v) {
    const int64_t degree = graph.num_nodes[source] ? one_of(random, {0, 1, 2, 3, 9, 30, 70}) : 0;
    std::vector<std::pair<int64_t, int64_t>> edges;  // (time, source)
    for (int64_t e = 0; e < degree; ++e) {
      const int64_t neighbor = below(random, graph.num_nodes[source]);
      const int64_t time =
          graph.timed[source] ? graph.node_time[source][neighbor] : below(random, 9);
      edges.emplace_back(time, neighbor);
    }
    if (relation.timed || graph.timed[source]) std::sort(edges.begin(), edges.end());
    for (const auto& [time, neighbor] : edges) {
      relation.indices.push_back(neighbor);
      if (relation.timed) relation.time.push_back(time);
      if (relation.weighted) {
        relation.weight.push_back(one_of(random, {0.0, 0.25, 1.0, 3.0, 1e9}));
      }
    }
    relation.indptr.push_back(static_cast<int64_t>(relation.indices.size()));
  }
  relation.narrow.assign(relation.indices.begin(), relation.indices.end());
  relation.narrow.shrink_to_fit();
  relation.indices.shrink_to_fit();
  relation.indptr.shrink_to_fit();
  relation.time.shrink_to_fit();
  relation.weight.shrink_to_fit();
  return relation;
}

template <class T>
const T* address(const std::vector<T>& values, bool present) {
  static const T empty{};
  if (!present) return nullptr;
  return values.empty() ? &empty : values.data();
}

// The draws of one node in one hop of one relation.
struct SlowDraws {
  uint64_t key;
  uint64_t node;
  uint32_t position;

  uint32_t word(uint64_t draw, uint32_t retry = 0) const {
    const auto block = static_cast<uint32_t>(draw / 4) + (retry << 24);
    return draw_block(key, node, position, block)[draw % 4];
  }

  int64_t bounded(uint64_t draw, uint64_t bound) const {
    for (uint32_t retry = 0;; ++retry) {
      const uint64_t product = word(draw, retry) * bound;
      if ((product & 0xffffffff) >= (uint64_t{1} << 32) % bound) {
        return static_cast<int64_t>(product >> 32);
      }
    }
  }

  double uniform(uint64_t number) const {
    const uint64_t high = word(2 * number) >> 5, low = word(2 * number + 1) >> 6;
    return static_cast<double>(high * (uint64_t{1} << 26) + low) / 9007199254740992.0;
  }
};

std::vector<int64_t> uniform_positions(const SlowDraws& draws, int64_t degree, int64_t fanout,
                                       bool replace) {
  if (replace) {
    std::vector<int64_t> picked;
    for (int64_t i = 0; i < fanout; ++i) picked.push_back(draws.bounded(i, degree));
    return picked;
  }
  std::set<int64_t> picked;
  for (int64_t i = 0; i < fanout; ++i) {
    const int64_t last = degree - fanout + i;
    if (!picked.insert(draws.bounded(i, last + 1)).second) picked.insert(last);
  }
  return {picked.begin(), picked.end()};
}

std::vector<int64_t> weighted_positions(const SlowDraws& draws, std::vector<double> weight,
                                        int64_t fanout, bool replace) {
  std::vector<int64_t> picked;
  std::vector<double> sums(weight.size());
  std::partial_sum(weight.begin(), weight.end(), sums.begin());
  int misses = 0;
  for (uint64_t number = 0; static_cast<int64_t>(picked.size()) < fanout; ++number) {
    if (sums.back() == 0) break;
    const double share = draws.uniform(number) * sums.back();
    int64_t found = 0;
    while (sums[found] <= share) ++found;
    const bool drawn = std::find(picked.begin(), picked.end(), found) != picked.end();
    if (replace || !drawn) {
      picked.push_back(found);
      misses = 0;
    } else if (++misses == 8) {
      for (int64_t i : picked) weight[i] = 0;
      std::partial_sum(weight.begin(), weight.end(), sums.begin());
      misses = 0;
    }
  }
  return picked;
}

struct SlowRun {
  const SmallGraph& graph;
  const SmallRequest& request;
  const SampleRequest& options = request.options;
  SlowBatch batch{};
  std::vector<std::map<std::pair<int64_t, int64_t>, int64_t>> place{};  // of (tree, node)
  std::vector<int64_t> seed_time{};

  int64_t place_of(int type, int64_t tree, int64_t v) {
    const int64_t next = static_cast<int64_t>(batch.node[type].size());
    const auto [at, fresh] = place[type].insert({{options.disjoint ? tree : 0, v}, next});
    if (fresh) add(type, tree, v);
    return at->second;
  }

  void add(int type, int64_t tree, int64_t v) {
    batch.node[type].push_back(v);
    batch.batch[type].push_back(tree);
  }

  void place_seeds() {
    int64_t tree = 0;
    for (std::size_t g = 0; g < request.types.size(); ++g) {
      const int type = request.types[g];
      for (std::size_t i = 0; i < request.ids[g].size(); ++i, ++tree) {
        const int64_t v = request.ids[g][i];
        const auto next = static_cast<int64_t>(batch.node[type].size());
        place[type].insert({{options.disjoint ? tree : 0, v}, next});
        add(type, tree, v);
        if (request.timed[g]) {
          seed_time.push_back(request.times[g][i]);
        } else if (graph.timed[type]) {
          seed_time.push_back(graph.node_time[type][v]);
        }
      }
    }
  }

  std::vector<int64_t> positions(int number, int hop, int64_t v, int64_t tree) const {
    const SmallRelation& relation = graph.relations[number];
    const int64_t fanout = options.fanouts[number][hop];
    std::vector<int64_t> eligible;
    for (int64_t e = relation.indptr[v]; e < relation.indptr[v + 1]; ++e) {
      const bool source_timed = graph.timed[relation.source_type];
      if (relation.timed || source_timed) {
        const int64_t time = relation.timed
                                 ? relation.time[e]
                                 : graph.node_time[relation.source_type][relation.indices[e]];
        if (time > seed_time[tree]) continue;
        const int64_t window = options.window.empty() ? -1 : options.window[number];
        if (window >= 0 && seed_time[tree] - time > window) continue;
      }
      eligible.push_back(e);
    }
    const bool timed = relation.timed || graph.timed[relation.source_type];
    if (options.last && timed && fanout >= 0) {
      while (static_cast<int64_t>(eligible.size()) > fanout) eligible.erase(eligible.begin());
    }
    const auto newest = static_cast<std::size_t>(
        options.newest.empty() || options.newest[number] < 0 ? eligible.size()
                                                             : options.newest[number]);
    while (eligible.size() > newest) eligible.erase(eligible.begin());
    const auto degree = static_cast<int64_t>(eligible.size());
    if (degree == 0 || fanout == 0) return {};
    if (fanout < 0 || (!options.replace && degree <= fanout)) return eligible;
    const uint32_t position = options.disjoint ? static_cast<uint32_t>(tree + 1) : 0;
    const SlowDraws draws{stream_key(options.seed, options.epoch, options.group, hop, number),
                          static_cast<uint64_t>(v), position};
    std::vector<int64_t> picked;
    if (options.labor) {
      for (int64_t i = 0; i < degree; ++i) {
        const int64_t source = relation.indices[eligible[i]];
        const SlowDraws shared{
            stream_key(options.seed, options.epoch, options.group, hop, relation.source_type),
            static_cast<uint64_t>(source) / 4, position};
        if (uint64_t{shared.word(source % 4)} * degree < static_cast<uint64_t>(fanout) << 32) {
          picked.push_back(i);
        }
      }
    } else if (relation.weighted) {
      std::vector<double> weight;
      for (int64_t e : eligible) weight.push_back(relation.weight[e]);
      picked = weighted_positions(draws, weight, fanout, options.replace);
    } else {
      picked = uniform_positions(draws, degree, fanout, options.replace);
    }
    std::sort(picked.begin(), picked.end());
    for (int64_t& i : picked) i = eligible[i];
    return picked;
  }

  void run() {
    const std::size_t types = graph.num_nodes.size(), relations = graph.relations.size();
    batch.node.resize(types);
    batch.batch.resize(types);
    batch.nodes_per_hop.resize(types);
    place.resize(types);
    for (auto* lists : {&batch.row, &batch.col, &batch.edge, &batch.edges_per_hop}) {
      lists->resize(relations);
    }
    place_seeds();
    std::vector<std::size_t> begin(types, 0);
    for (std::size_t t = 0; t < types; ++t) {
      batch.nodes_per_hop[t].push_back(static_cast<int64_t>(batch.node[t].size()));
    }
    for (std::size_t hop = 0; hop < options.fanouts[0].size(); ++hop) {
      std::vector<std::size_t> end;
      for (const auto& nodes : batch.node) end.push_back(nodes.size());
      for (std::size_t r = 0; r < relations; ++r) {
        const SmallRelation& relation = graph.relations[r];
        const std::size_t before = batch.edge[r].size();
        for (std::size_t i = begin[relation.target_type]; i < end[relation.target_type]; ++i) {
          const int64_t v = batch.node[relation.target_type][i];
          const int64_t tree = batch.batch[relation.target_type][i];
          for (int64_t e : positions(static_cast<int>(r), static_cast<int>(hop), v, tree)) {
            batch.row[r].push_back(place_of(relation.source_type, tree, relation.indices[e]));
            batch.col[r].push_back(static_cast<int64_t>(i));
            batch.edge[r].push_back(e);
          }
        }
        batch.edges_per_hop[r].push_back(static_cast<int64_t>(batch.edge[r].size() - before));
      }
      begin = end;
      for (std::size_t t = 0; t < types; ++t) {
        batch.nodes_per_hop[t].push_back(static_cast<int64_t>(batch.node[t].size() - end[t]));
      }
    }
  }
};

}  // namespace

TypedGraph SmallGraph::view() const {
  TypedGraph graph{num_nodes, {}, {}};
  for (std::size_t t = 0; t < num_nodes.size(); ++t) {
    graph.node_time.push_back(address(node_time[t], timed[t]));
  }
  for (const SmallRelation& relation : relations) {
    const void* const indices =
        relation.wide ? static_cast<const void*>(relation.indices.data()) : relation.narrow.data();
    graph.relations.push_back(
        {relation.source_type, relation.target_type, relation.indptr.data(), indices, relation.wide,
         static_cast<int64_t>(relation.indices.size()), address(relation.time, relation.timed),
         address(relation.weight, relation.weighted)});
  }
  return graph;
}

SmallGraph random_graph(std::mt19937_64& random, Kind kind) {
  SmallGraph graph;
  graph.num_nodes = {1 + below(random, 30), 1 + below(random, 400), below(random, 9)};
  graph.node_time.resize(3);
  graph.timed.assign(3, false);
  for (int t = 0; t < 3; ++t) {
    if (kind != Kind::node_time || t == 2) continue;
    graph.timed[t] = true;
    for (int64_t v = 0; v < graph.num_nodes[t]; ++v) {
      graph.node_time[t].push_back(below(random, 9));
    }
    graph.node_time[t].shrink_to_fit();
  }
  const std::pair<int, int> pairs[] = {{0, 0}, {1, 0}, {0, 1}, {1, 0}, {2, 1}};
  for (const auto& [source, target] : pairs) {
    graph.relations.push_back(random_relation(random, graph, kind, source, target));
  }
  return graph;
}

SampleRequest SmallRequest::view() const {
  SampleRequest request = options;
  for (std::size_t g = 0; g < types.size(); ++g) {
    request.seeds.push_back({types[g], ids[g].data(), static_cast<int64_t>(ids[g].size()),
                             address(times[g], timed[g])});
  }
  return request;
}

SmallRequest random_request(std::mt19937_64& random, const SmallGraph& graph, Kind kind,
                            bool labor) {
  const bool temporal = kind == Kind::node_time || kind == Kind::edge_time;
  SmallRequest request;
  for (int64_t g = below(random, 4); g > 0; --g) {
    const int type = static_cast<int>(below(random, 3));
    const bool given = temporal && (!graph.timed[type] || random() % 2 == 0);
    request.types.push_back(type);
    request.timed.push_back(given);
    request.ids.emplace_back();
    request.times.emplace_back();
    for (int64_t i = graph.num_nodes[type] ? below(random, 12) : 0; i > 0; --i) {
      request.ids.back().push_back(below(random, graph.num_nodes[type]));
      if (given) request.times.back().push_back(below(random, 11) - 1);
    }
  }
  request.options = {{},
                     {},
                     !labor && random() % 2 == 0,
                     temporal || random() % 2 == 0,
                     random() % 2 == 0,
                     labor,
                     random(),
                     random() % 5,
                     random() % 5};
  const int64_t hops = below(random, 4);
  const bool limited = random() % 2 == 0;
  for (std::size_t r = 0; r < graph.relations.size(); ++r) {
    if (limited) {
      const SmallRelation& relation = graph.relations[r];
      const bool timed = relation.timed || graph.timed[relation.source_type];
      for (auto* limits : {&request.options.window, &request.options.newest}) {
        limits->push_back(timed ? one_of<int64_t>(random, {-1, 0, 1, 3, 6}) : -1);
      }
    }
    request.options.fanouts.emplace_back();
    for (int64_t hop = 0; hop < hops; ++hop) {
      request.options.fanouts.back().push_back(one_of<int64_t>(random, {-1, 0, 1, 2, 5, 20}));
    }
  }
  return request;
}

SlowBatch sample_slowly(const SmallGraph& graph, const SmallRequest& request) {
  SlowRun run{graph, request};
  run.run();
  return std::move(run.batch);
}

}  // namespace gnnsys::test
