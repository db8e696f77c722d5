#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/isa.hpp"
#include "gnnsys/sampler/neighbor_file.hpp"
#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// Pooled int64 array of known length.
struct IdArray {
  std::shared_ptr<char> area;
  int64_t size = 0;
  int64_t* data() const { return reinterpret_cast<int64_t*>(area.get()); }
};

// Edges of one type, as a CSC of the targets' in-neighbours: those of target v are the sources
// indices[indptr[v] … indptr[v + 1]).
struct Relation {
  int source_type;
  int target_type;
  const int64_t* indptr;  // (nodes of the target type + 1)
  const void* indices;    // (num_edges) int32_t, or int64_t when `wide`
  bool wide;
  int64_t num_edges;
  const int64_t* edge_time;   // (num_edges) by position in the CSC, or null
  const double* edge_weight;  // (num_edges) by position in the CSC, or null
  // What the neighbours are read with, or null for `indices`, which are there in any case: choices
  // by time and induce() read these.
  NeighborFile* file = nullptr;
};

// Nodes and edges of several types; a homogeneous graph has one of each.
struct TypedGraph {
  std::vector<int64_t> num_nodes;         // per type
  std::vector<const int64_t*> node_time;  // per type: (nodes), or null
  std::vector<Relation> relations;
};

// Seeds of one type.
struct SeedGroup {
  int type;
  const int64_t* ids;
  int64_t count;
  const int64_t* times;  // (count), or null
};

struct SampleRequest {
  std::vector<SeedGroup> seeds;
  std::vector<std::vector<int64_t>> fanouts;  // [relation][hop], nearest the seeds first; -1 is all
  bool replace;
  bool disjoint;  // every seed grows a tree of its own
  bool last;      // of the edges that are not too late the newest, not a uniform choice
  bool labor;     // a draw belongs to the source node and is shared by all its targets
  uint64_t seed;
  uint64_t epoch;
  uint64_t group;
  uint64_t first_hop = 0;  // the seeds draw as the nodes that this hop expands
  // Which edges may be sampled, by relation; empty, or -1 for a relation, where there is no limit.
  std::vector<int64_t> window = {};  // how much older than its seed an edge may be
  std::vector<int64_t> newest = {};  // how many, of those in time the newest
};

// (2, edges) pooled: the edges' sources, then their targets, as places in the batch's node lists.
using EdgeIndex = IdArray;

// Node lists per type: seeds first, then nodes in the order in which they were sampled, hop by hop,
// relation by relation, targets ascending. Edges per relation, grouped by ascending target, each
// target's by ascending position in the CSC.
struct TypedBatch {
  std::vector<IdArray> node;                        // [type]
  std::vector<IdArray> batch;                       // [type] seed of each node's tree; if disjoint
  std::vector<EdgeIndex> edge_index;                // [relation]
  std::vector<IdArray> edge;                        // [relation] positions in the CSC
  std::vector<std::vector<int64_t>> nodes_per_hop;  // [type][hops + 1], seeds first
  std::vector<std::vector<int64_t>> edges_per_hop;  // [relation][hops]
};

struct InducedEdges {
  std::vector<EdgeIndex> edge_index;  // [relation]
  std::vector<IdArray> edge;          // [relation] positions in the CSC
};

// Neighbour sampling over typed graphs with times and weights, by gnnsys/rng.py's format 1. A batch
// depends on the graph and on the request alone. Keeps map_bytes() of each type for each batch that
// is being sampled at once.
//
// All calls throw std::runtime_error for a graph whose arrays point outside themselves, and what
// NeighborFile throws.
class Sampler {
 public:
  // Throws std::invalid_argument for arguments that do not fit together and for weights that are
  // negative, not finite or too large to sum, std::length_error for a type of 2^32 - 2^24 nodes.
  Sampler(TypedGraph graph, int threads, Isa isa);
  ~Sampler();

  // About how much finding the places of nodes takes for a batch: 4 bytes for each of a type's
  // nodes, or, of 2^25 and more, about 24 for each one in the batch.
  static int64_t map_bytes(int64_t num_nodes, int64_t batch_nodes);

  // Throws std::out_of_range for a seed outside its type, std::invalid_argument for a request that
  // the graph does not allow, std::runtime_error for neighbours that are not sorted by time. May be
  // called from several threads at once.
  TypedBatch sample(const SampleRequest& request);

  // All edges between the given nodes, one list of ids per type: for each target in order its
  // in-edges by position in the CSC. A source that is given twice counts as its first place, a
  // target that is given twice has its edges at both places. Throws std::out_of_range for a node
  // outside.
  InducedEdges induce(const std::vector<std::span<const int64_t>>& nodes);

 private:
  struct Context;
  struct Run;
  std::unique_ptr<Context> take_context();
  void give_back(std::unique_ptr<Context> context);

  const TypedGraph graph_;
  const Isa isa_;
  bool timed_ = false;
  std::vector<std::shared_ptr<const double>> cumulative_;  // [relation] (num_edges), or null
  ThreadPool threads_;
  std::shared_ptr<BufferPool> pool_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Context>> idle_;
};

}  // namespace gnnsys
