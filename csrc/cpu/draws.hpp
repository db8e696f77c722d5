#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gnnsys/isa.hpp"
#include "gnnsys/philox.hpp"

namespace gnnsys {

// What the samplers share: random words of many nodes at once, and uniform picks made of them.

inline constexpr int64_t kDistance = 32;  // how far ahead of their use scattered reads prefetch
inline constexpr int64_t kMaxDegree = (int64_t{1} << 32) - 1;
inline constexpr int64_t kMaxFanout = int64_t{1} << 24;

// The random words of blocks 0 … blocks - 1 of `count` nodes: words[(i * blocks + b) * 4 …] is
// block b of nodes[i]. positions are the nodes' counter words 2; null stands for zeros.
using PhiloxNodes = void (*)(uint64_t key, const int64_t* nodes, const uint32_t* positions,
                             int64_t count, uint32_t blocks, uint32_t* words);
PhiloxNodes choose_philox_nodes(Isa isa);

// Nodes that sample neighbours; array i of each is of node i.
struct Targets {
  uint64_t key;
  int64_t fanout;  // -1 takes all
  bool replace;
  const int64_t* node;
  const uint32_t* position;  // counter words 2; null stands for zeros
  const int64_t* first;      // position of the first edge in the CSC
  const uint32_t* degree;
};

// What one thread needs to pick for some targets.
struct PickScratch {
  std::vector<int64_t> nodes;       // (targets + 1) those that draw
  std::vector<uint32_t> positions;  // (targets + 1) their counter words 2
  std::vector<uint32_t> words;      // (those, blocks, 4) their random words
  std::vector<uint64_t> set;        // 1 + position of those that one has picked; 0 is free

  void reserve_nodes(int64_t count) {
    if (static_cast<int64_t>(nodes.size()) > count) return;
    nodes.resize(count + 1);
    positions.resize(count + 1);
  }

  void reserve_words(int64_t count, uint32_t blocks) {
    const std::size_t need = count * blocks * kDrawsPerBlock + kLaneSlack;
    if (words.size() < need) words.resize(need);
  }

  static constexpr uint32_t kLaneSlack = 32;  // words that a pick may read past a node's own
};

// Writes the positions of the edges that the targets [begin, end) sample uniformly, ascending for
// each target, as tests/unit/rng_reference.py's sample_positions.
using PickPositions = void (*)(const Targets& targets, int64_t begin, int64_t end,
                               PickScratch& scratch, int64_t* edge);
PickPositions choose_pick_positions(Isa isa);

inline bool needs_draws(int64_t degree, int64_t fanout, bool replace) {
  return replace ? degree > 0 : degree > fanout;
}

inline int64_t sampled_edges(int64_t degree, int64_t fanout, bool replace) {
  if (fanout < 0) return degree;
  if (replace) return degree > 0 ? fanout : 0;
  return std::min(degree, fanout);
}

}  // namespace gnnsys
