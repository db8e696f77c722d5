#include "sampler/checks.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "draws.hpp"
#include "sampler/batch_arrays.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kMaxSeeds = int64_t{1} << 31;

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

std::string name_of(const char* what, std::size_t number) {
  return std::string(what) + " " + std::to_string(number);
}

void check_ids(const TypedGraph& graph, int type, std::span<const int64_t> ids, const char* what) {
  const int64_t num_nodes = graph.num_nodes[type];
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= num_nodes) {
      throw std::out_of_range(std::string(what) + " " + std::to_string(ids[i]) + " at position " +
                              std::to_string(i) + " is outside " +
                              (graph.num_nodes.size() == 1
                                   ? "the graph's nodes "
                                   : "the nodes of " + name_of("type", type) + ", ") +
                              "[0, " + std::to_string(num_nodes) + ")");
    }
  }
}

void check_fanouts(const TypedGraph& graph, const std::vector<std::vector<int64_t>>& fanouts) {
  if (fanouts.size() != graph.relations.size()) {
    refuse("fanouts are given for " + std::to_string(fanouts.size()) +
           " relations, the graph has " + std::to_string(graph.relations.size()));
  }
  for (std::size_t r = 0; r < fanouts.size(); ++r) {
    if (fanouts[r].size() != fanouts[0].size()) {
      refuse(name_of("relation", r) + " has fanouts for " + std::to_string(fanouts[r].size()) +
             " hops, relation 0 for " + std::to_string(fanouts[0].size()));
    }
    for (int64_t fanout : fanouts[r]) {
      if (fanout < -1 || fanout >= kMaxFanout) {
        refuse(name_of("relation", r) + ": fanout " + std::to_string(fanout) +
               " is neither -1 (all neighbours) nor in [0, " + std::to_string(kMaxFanout) + ")");
      }
    }
  }
}

void check_limits(const TypedGraph& graph, const std::vector<int64_t>& limits, const char* what) {
  if (limits.empty()) return;
  if (limits.size() != graph.relations.size()) {
    refuse(std::string(what) + " is given for " + std::to_string(limits.size()) +
           " relations, the graph has " + std::to_string(graph.relations.size()));
  }
  for (std::size_t r = 0; r < limits.size(); ++r) {
    if (limits[r] < -1) {
      refuse(name_of("relation", r) + ": " + what + " " + std::to_string(limits[r]) +
             " is neither -1 (no limit) nor at least 0");
    }
    const Relation& relation = graph.relations[r];
    if (limits[r] >= 0 && !relation.edge_time && !graph.node_time[relation.source_type]) {
      refuse(name_of("relation", r) + ": " + what + " is given, and it has no times");
    }
  }
}

bool has_node_times(const TypedGraph& graph) {
  return std::any_of(graph.node_time.begin(), graph.node_time.end(),
                     [](const int64_t* time) { return time != nullptr; });
}

bool has_edge_times(const TypedGraph& graph) {
  return std::any_of(graph.relations.begin(), graph.relations.end(),
                     [](const Relation& relation) { return relation.edge_time != nullptr; });
}

bool has_weights(const TypedGraph& graph) {
  return std::any_of(graph.relations.begin(), graph.relations.end(),
                     [](const Relation& relation) { return relation.edge_weight != nullptr; });
}

}  // namespace

bool has_times(const TypedGraph& graph) { return has_node_times(graph) || has_edge_times(graph); }

void check_graph(const TypedGraph& graph) {
  const auto types = static_cast<int>(graph.num_nodes.size());
  if (graph.node_time.size() != graph.num_nodes.size()) {
    refuse("node_time has " + std::to_string(graph.node_time.size()) + " entries for " +
           std::to_string(types) + " node types");
  }
  for (int t = 0; t < types; ++t) {
    const int64_t nodes = graph.num_nodes[t];
    if (nodes < 0) {
      refuse(name_of("type", t) + " has " + std::to_string(nodes) + " nodes");
    }
    if (nodes >= kMaxNodes) {
      throw std::length_error(name_of("type", t) + " has " + std::to_string(nodes) +
                              " nodes, the sampler takes less than " + std::to_string(kMaxNodes));
    }
  }
  for (std::size_t r = 0; r < graph.relations.size(); ++r) {
    const Relation& relation = graph.relations[r];
    for (int type : {relation.source_type, relation.target_type}) {
      if (type < 0 || type >= types) {
        refuse(name_of("relation", r) + " has the type " + std::to_string(type) + ", outside [0, " +
               std::to_string(types) + ")");
      }
    }
  }
  if (has_node_times(graph) && has_edge_times(graph)) {
    refuse("node_time and edge_time are given: one of them, not both");
  }
  if (has_weights(graph) && has_times(graph)) {
    refuse("edge_weight is given with times: weighted temporal sampling is not defined");
  }
}

void check_request(const TypedGraph& graph, const SampleRequest& request) {
  const bool timed = has_times(graph);
  check_fanouts(graph, request.fanouts);
  check_limits(graph, request.window, "window");
  check_limits(graph, request.newest, "newest");
  if (timed && !request.disjoint) {
    refuse("times need disjoint trees: disjoint is false");
  }
  if (request.labor) {
    if (request.replace) {
      refuse("labor draws without replacement: replace is true");
    }
    if (has_weights(graph)) {
      refuse("labor draws uniformly: the graph has edge_weight");
    }
  }
  int64_t total = 0;
  for (const SeedGroup& seeds : request.seeds) total += seeds.count;
  if (total >= kMaxSeeds) {
    refuse(std::to_string(total) + " seeds, a batch takes less than 2^31");
  }
  for (const SeedGroup& seeds : request.seeds) {
    if (seeds.type < 0 || seeds.type >= static_cast<int>(graph.num_nodes.size())) {
      refuse("seeds have the type " + std::to_string(seeds.type) + ", outside [0, " +
             std::to_string(graph.num_nodes.size()) + ")");
    }
    if (!timed && seeds.times) {
      refuse("seeds of " + name_of("type", seeds.type) + " have times, the graph has none");
    }
    if (timed && !seeds.times && !graph.node_time[seeds.type]) {
      refuse("seeds of " + name_of("type", seeds.type) +
             " have no times, neither given nor as node_time");
    }
    check_ids(graph, seeds.type, {seeds.ids, static_cast<std::size_t>(seeds.count)}, "seed");
  }
}

void check_nodes(const TypedGraph& graph, const std::vector<std::span<const int64_t>>& nodes) {
  if (nodes.size() != graph.num_nodes.size()) {
    refuse("nodes are given for " + std::to_string(nodes.size()) + " types, the graph has " +
           std::to_string(graph.num_nodes.size()));
  }
  for (std::size_t t = 0; t < nodes.size(); ++t) {
    check_ids(graph, static_cast<int>(t), nodes[t], "node");
  }
}

}  // namespace gnnsys
