#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "draws.hpp"
#include "gnnsys/sampler/sampler.hpp"
#include "sampler/node_places.hpp"
#include "sampler/weights.hpp"

namespace gnnsys {

// Sampled edges in the making: position in the CSC and source node of each.
struct EdgeBuffer {
  std::unique_ptr<int64_t[]> edge;
  std::unique_ptr<int64_t[]> source;
  int64_t size = 0;
  int64_t capacity = 0;

  void reserve(int64_t wanted);
};

// One hop of one relation. Arrays of the frontier: one entry per node to expand.
struct RelationHop {
  const Relation* relation;
  int number;                  // of the relation
  int64_t num_sources;         // nodes of the source type
  const double* cumulative;    // running sums of the weights, or null
  const int64_t* source_time;  // per source node, or null
  const int64_t* seed_time;    // per tree; null where the relation has no times
  const int64_t* frontier;     // nodes
  const int64_t* tree;         // seeds whose trees they belong to; null unless disjoint
  uint64_t key;
  int64_t fanout;
  bool replace;
  int64_t window;  // how much older than its seed an edge may be, or -1
  int64_t newest;  // how many edges in time may be sampled, the newest, or -1
  bool labor;
  const uint8_t* coarse;  // per source node: the upper bits of its LABOR draw, or null
  uint32_t* count;        // receives the edges of each frontier node
  PickPositions pick;
  PhiloxNodes philox;
};

// The in-edges of `target`, as positions [first, first + degree) of the CSC.
struct Extent {
  int64_t first;
  int64_t degree;
};

template <class Index>
const Index* indices_of(const RelationHop& hop) {
  return static_cast<const Index*>(hop.relation->indices);
}

inline bool is_outside(int64_t node, int64_t num_nodes) {
  return static_cast<uint64_t>(node) >= static_cast<uint64_t>(num_nodes);
}

[[noreturn, gnu::cold]] void throw_bad_indptr(int number);
[[noreturn, gnu::cold]] void throw_bad_source(int number, int64_t position, int64_t source,
                                              int64_t num_sources);

// What one thread needs to expand a chunk of the frontier; arrays have one entry per node of it.
struct ExpandScratch {
  std::vector<int64_t> first;      // position of the first edge that may be sampled
  std::vector<uint32_t> degree;    // how many may be
  std::vector<uint32_t> position;  // counter words 2
  PickScratch pick;
  WeightScratch weight;
};

// Appends the edges that frontier[begin … end) sample. Throws std::runtime_error for a graph whose
// arrays point outside themselves and for neighbours that are not sorted by time.
void expand(const RelationHop& hop, int64_t begin, int64_t end, ExpandScratch& scratch,
            EdgeBuffer& out);

// Appends all in-edges of the targets whose sources have a place; `source` then holds these places.
// `found` (count) receives the edges of each target. Throws as expand().
void expand_among(const Relation& relation, int number, int64_t num_sources,
                  const NodePlaces& sources, const int64_t* targets, int64_t count, uint32_t* found,
                  EdgeBuffer& out);

}  // namespace gnnsys
