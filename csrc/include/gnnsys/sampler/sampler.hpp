#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// A graph in CSC: the in-neighbours of node v are indices[indptr[v] … indptr[v + 1]).
struct CscGraph {
  const int64_t* indptr;  // (num_nodes + 1)
  const void* indices;    // (num_edges) int32_t, or int64_t when `wide`
  bool wide;
  int64_t num_nodes;
  int64_t num_edges;
};

struct SampleRequest {
  const int64_t* seeds;
  int64_t num_seeds;
  std::vector<int64_t> fanouts;  // per hop, nearest the seeds first; -1 takes all neighbours
  bool replace;
  uint64_t seed;
  uint64_t epoch;
  uint64_t group;
};

// Pooled int64 array of known length.
struct IdArray {
  std::shared_ptr<char> area;
  int64_t size = 0;
  int64_t* data() const { return reinterpret_cast<int64_t*>(area.get()); }
};

// Seeds first, then nodes in the order in which they were sampled; edge e runs from node[row[e]] to
// node[col[e]] and lies at position edge[e] of the CSC. Edges are grouped by target, hop by hop.
struct SampledBatch {
  IdArray node, row, col, edge;
  std::vector<int64_t> nodes_per_hop;  // hops + 1, seeds first
  std::vector<int64_t> edges_per_hop;  // hops
};

// Uniform neighbour sampling by gnnsys/rng.py's format 1. A batch depends on the graph and on the
// request alone. Keeps 4 bytes a node for each batch that is being sampled at once.
class Sampler {
 public:
  // Throws std::length_error for a graph of 2^32 - 2^24 nodes or more.
  Sampler(CscGraph graph, int threads, Isa isa);
  ~Sampler();

  // Throws std::out_of_range for a seed outside the graph, std::invalid_argument for a fanout below
  // -1, std::runtime_error for a graph whose arrays point outside themselves. May be called from
  // several threads at once.
  SampledBatch sample(const SampleRequest& request);

 private:
  struct Context;
  std::unique_ptr<Context> take_context();
  void give_back(std::unique_ptr<Context> context);

  const CscGraph graph_;
  const Isa isa_;
  ThreadPool threads_;
  std::shared_ptr<BufferPool> pool_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Context>> idle_;
};

}  // namespace gnnsys
