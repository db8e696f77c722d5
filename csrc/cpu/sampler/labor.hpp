#pragma once

#include <cstdint>
#include <vector>

#include "gnnsys/thread_pool.hpp"
#include "sampler/expand.hpp"

namespace gnnsys {

// LABOR-0 (Balin, Catalyurek: "Layer-Neighbor Sampling: Defusing Neighborhood Explosion in GNNs",
// NeurIPS 2023, with uniform probabilities): source t has one uniform number r_t for all targets of
// the hop, and target s keeps the edge if r_t < k / d_s. As the tests' labor_positions draws.

// The upper 8 bits of every source's draw, which decide about all but one edge in 256.
class CoarseDraws {
 public:
  // Whether to draw for all sources rather than for `edges` neighbours, one by one.
  static bool pays(int64_t num_sources, int64_t edges) { return edges > num_sources / 4; }

  // Draws, unless what is here already has the key.
  const uint8_t* of(uint64_t key, int64_t num_sources, PhiloxNodes philox,
                    const ThreadPool& threads);

 private:
  std::vector<uint8_t> draws_;
  uint64_t key_ = 0;
};

// Appends the edges that frontier[begin … end) keep of those in scratch.first and scratch.degree.
// `lists` are their neighbours, one list after another, or null for those of the relation.
template <class Index>
void pick_by_source(const RelationHop& hop, int64_t begin, int64_t end, const Index* lists,
                    ExpandScratch& scratch, EdgeBuffer& out);

}  // namespace gnnsys
