#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "draws.hpp"
#include "gnnsys/sampler/sampler.hpp"

namespace gnnsys {

// The fast path of uniform choices without trees: how many edges a hop samples is known before it
// draws, so that each chunk of the frontier writes to its place in the batch at once. Measured a
// tenth faster than the path through EdgeBuffers.

// One hop of one relation; the targets are the frontier.
struct UniformHop {
  const Relation* relation;
  int64_t num_sources;
  PickPositions pick;
  Targets targets;
  int64_t first_local;  // of the frontier's first node in the batch
  int64_t* first;       // what targets.first and targets.degree read
  uint32_t* degree;
};

// Works on the targets [begin, end) of a hop.
template <class Index>
struct UniformKernels {
  // Reads the extents of the targets; returns how many edges they will sample, or -1 when indptr is
  // not ascending within [0, num_edges].
  int64_t (*measure)(const UniformHop&, int64_t begin, int64_t end);
  // Writes the positions and columns of the edges that measure() told of.
  void (*pick)(const UniformHop&, int64_t begin, int64_t end, PickScratch& scratch, int64_t* edge,
               int64_t* col);
  // Writes the neighbours of `count` edges; false when one lies outside the graph.
  bool (*read)(const UniformHop&, const int64_t* edge, int64_t count, Index* neighbor);
};

template <class Index>
UniformKernels<Index> choose_uniform_kernels(Isa isa);

// What the hops of one batch need; kept from batch to batch.
struct UniformScratch {
  std::vector<int64_t> first;         // (frontier)
  std::vector<uint32_t> degree;       // (frontier)
  std::vector<int64_t> chunk_offset;  // (chunks + 1) first edge of each chunk of the hop
  std::shared_ptr<char> neighbor;     // (edges of the hop) Index
  std::size_t neighbor_bytes = 0;
};

}  // namespace gnnsys
