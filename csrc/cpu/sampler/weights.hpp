#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gnnsys/sampler/sampler.hpp"

namespace gnnsys {

// Weighted choice of neighbours, bit for bit that of the tests' weighted_positions. Doubles are
// only added, multiplied and compared, never both in one expression that a compiler may fuse.

// The running sums of each target's weights, in order: (num_edges) by position in the CSC. `number`
// is the relation's. Throws std::invalid_argument for a weight that is negative or not finite, a
// sum that overflows, and for an indptr that descends.
std::shared_ptr<const double> sum_weights(const Relation& relation, int64_t num_targets,
                                          int number);

// A node that chooses among its neighbours.
struct WeightedTarget {
  uint64_t key;
  uint64_t node;
  uint32_t position;         // counter word 2
  const double* weight;      // (degree)
  const double* cumulative;  // (degree) running sums of the weights
  int64_t degree;
  const uint32_t* words;  // of the first `blocks` blocks
  uint32_t blocks;
};

struct WeightScratch {
  std::vector<uint64_t> drawn;  // a bit per neighbour; all zero between the calls
  std::vector<double> left;     // (degree) running sums without what was drawn
};

// Blocks of random words that `count` draws without a miss take: two words each.
inline uint32_t weighted_blocks(int64_t count) { return static_cast<uint32_t>((count + 1) / 2); }

// Writes at most k positions in [0, degree), ascending; returns how many. Without replacement each
// is drawn in proportion to the weights of those not drawn yet.
int64_t pick_weighted(const WeightedTarget& target, int64_t k, bool replace, WeightScratch& scratch,
                      int64_t* picked);

}  // namespace gnnsys
