#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "gnnsys/sampler/sampler.hpp"

namespace gnnsys::test {

// A small typed graph that owns its arrays; exactly as long as they must be, so that a sanitizer
// sees any read beside them.
struct SmallRelation {
  int source_type, target_type;
  std::vector<int64_t> indptr;
  std::vector<int64_t> indices;
  std::vector<int32_t> narrow;  // the indices again, where the relation is not wide
  std::vector<int64_t> time;
  std::vector<double> weight;
  bool wide, timed, weighted;
};

enum class Kind { plain, weight, node_time, edge_time };

struct SmallGraph {
  std::vector<int64_t> num_nodes;
  std::vector<std::vector<int64_t>> node_time;
  std::vector<bool> timed;  // per type
  std::vector<SmallRelation> relations;

  TypedGraph view() const;
};

// Self-loops, duplicate edges, isolated nodes, a type that has no edges in, one that may be empty.
SmallGraph random_graph(std::mt19937_64& random, Kind kind);

struct SmallRequest {
  std::vector<int> types;
  std::vector<std::vector<int64_t>> ids, times;
  std::vector<bool> timed;
  SampleRequest options;  // without seeds

  SampleRequest view() const;
};

SmallRequest random_request(std::mt19937_64& random, const SmallGraph& graph, Kind kind,
                            bool labor);

struct SlowBatch {
  std::vector<std::vector<int64_t>> node, batch, row, col, edge;
  std::vector<std::vector<int64_t>> nodes_per_hop, edges_per_hop;
};

// What Sampler::sample promises, by the book.
SlowBatch sample_slowly(const SmallGraph& graph, const SmallRequest& request);

}  // namespace gnnsys::test
