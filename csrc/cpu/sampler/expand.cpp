#include "sampler/expand.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "sampler/labor.hpp"

namespace gnnsys {
namespace {

std::string name_of(int number) { return "relation " + std::to_string(number); }

Extent read_extent(const Relation& relation, int number, int64_t target) {
  const int64_t first = relation.indptr[target];
  const int64_t end = relation.indptr[target + 1];
  if (first < 0 || end < first || end > relation.num_edges || end - first > kMaxDegree) {
    throw_bad_indptr(number);
  }
  return {first, end - first};
}

// Calls f with a null pointer of the type of the relation's indices.
template <class F>
void with_index_type(const Relation& relation, F&& f) {
  if (relation.wide) {
    f(static_cast<const int64_t*>(nullptr));
  } else {
    f(static_cast<const int32_t*>(nullptr));
  }
}

void read_extents(const RelationHop& hop, int64_t begin, int64_t end, ExpandScratch& scratch) {
  const std::size_t count = end - begin;
  if (scratch.first.size() < count) {
    scratch.first.resize(count);
    scratch.degree.resize(count);
    scratch.position.resize(count);
  }
  for (int64_t i = begin; i < end; ++i) {
    if (i + kDistance < end) {
      __builtin_prefetch(hop.relation->indptr + hop.frontier[i + kDistance]);
    }
    const Extent extent = read_extent(*hop.relation, hop.number, hop.frontier[i]);
    scratch.first[i - begin] = extent.first;
    scratch.degree[i - begin] = static_cast<uint32_t>(extent.degree);
    scratch.position[i - begin] = hop.tree ? static_cast<uint32_t>(hop.tree[i] + 1) : 0;
  }
}

// The time of the edge at a position: its own or its source's.
template <class Index>
int64_t time_at(const RelationHop& hop, int64_t position) {
  if (!hop.source_time) return hop.relation->edge_time[position];
  const int64_t source = indices_of<Index>(hop)[position];
  if (is_outside(source, hop.num_sources)) {
    throw_bad_source(hop.number, position, source, hop.num_sources);
  }
  return hop.source_time[source];
}

// The first of the positions [low, high) for whose time `before` does not hold, as it does for all
// that come earlier.
template <class Index, class Before>
int64_t find_time(const RelationHop& hop, int64_t low, int64_t high, const Before& before) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (before(time_at<Index>(hop, middle))) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Narrows the extents to edges that are neither later than the seed nor older than the window; they
// are sorted by time.
template <class Index>
void keep_in_time(const RelationHop& hop, int64_t begin, int64_t end, ExpandScratch& scratch) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = scratch.first[i - begin];
    const int64_t latest = hop.seed_time[hop.tree[i]];
    const int64_t after = find_time<Index>(hop, first, first + scratch.degree[i - begin],
                                           [&](int64_t time) { return time <= latest; });
    if (after > first + 1 && time_at<Index>(hop, first) > time_at<Index>(hop, after - 1)) {
      throw std::runtime_error(name_of(hop.number) + ": the neighbours of node " +
                               std::to_string(hop.frontier[i]) + " are not sorted by time");
    }
    int64_t from = first;
    if (hop.window >= 0) {
      // An age may exceed what int64_t holds.
      from = find_time<Index>(hop, first, after, [&](int64_t time) {
        return static_cast<uint64_t>(latest) - static_cast<uint64_t>(time) >
               static_cast<uint64_t>(hop.window);
      });
    }
    if (hop.newest >= 0) from = std::max(from, after - hop.newest);
    scratch.first[i - begin] = from;
    scratch.degree[i - begin] = static_cast<uint32_t>(after - from);
  }
}

// Reads the sources of the edges from `from` on.
template <class Index>
void read_sources(const RelationHop& hop, int64_t from, EdgeBuffer& out) {
  std::vector<Index> found;
  const Index* const indices = indices_of<Index>(hop);
  if (hop.relation->file) {
    found.resize(out.size - from);
    hop.relation->file->gather(out.edge.get() + from, out.size - from, found.data());
  }
  for (int64_t e = from; e < out.size; ++e) {
    if (e + kDistance < out.size) __builtin_prefetch(indices + out.edge[e + kDistance]);
    const int64_t source = found.empty() ? indices[out.edge[e]] : found[e - from];
    if (is_outside(source, hop.num_sources)) {
      throw_bad_source(hop.number, out.edge[e], source, hop.num_sources);
    }
    out.source[e] = source;
  }
}

// All neighbours of the targets, one list after another; none where they are not read of a file.
template <class Index>
std::vector<Index> read_lists(const RelationHop& hop, int64_t targets,
                              const ExpandScratch& scratch) {
  std::vector<Index> lists;
  if (!hop.relation->file) return lists;
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < targets; ++i) {
    for (int64_t e = 0; e < scratch.degree[i]; ++e) positions.push_back(scratch.first[i] + e);
  }
  lists.resize(positions.size());
  hop.relation->file->gather(positions.data(), static_cast<int64_t>(positions.size()),
                             lists.data());
  return lists;
}

void pick_uniformly(const RelationHop& hop, int64_t begin, int64_t end, ExpandScratch& scratch,
                    EdgeBuffer& out) {
  int64_t total = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t count = sampled_edges(scratch.degree[i - begin], hop.fanout, hop.replace);
    hop.count[i] = static_cast<uint32_t>(count);
    total += count;
  }
  out.reserve(out.size + total);
  const Targets targets{hop.key,
                        hop.fanout,
                        hop.replace,
                        hop.frontier + begin,
                        hop.tree ? scratch.position.data() : nullptr,
                        scratch.first.data(),
                        scratch.degree.data()};
  hop.pick(targets, 0, end - begin, scratch.pick, out.edge.get() + out.size);
  out.size += total;
}

void pick_by_weight(const RelationHop& hop, int64_t begin, int64_t end, ExpandScratch& scratch,
                    EdgeBuffer& out) {
  const uint32_t blocks = hop.fanout > 0 ? weighted_blocks(hop.fanout) : 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = scratch.first[i - begin], degree = scratch.degree[i - begin];
    const int64_t most = sampled_edges(degree, hop.fanout, hop.replace);
    out.reserve(out.size + most);
    int64_t* const edge = out.edge.get() + out.size;
    int64_t count = most;
    if (hop.fanout > 0 && needs_draws(degree, hop.fanout, hop.replace)) {
      scratch.pick.reserve_words(1, blocks);
      uint32_t* const words = scratch.pick.words.data();
      const uint32_t position = scratch.position[i - begin];
      hop.philox(hop.key, hop.frontier + i, &position, 1, blocks, words);
      const WeightedTarget target{hop.key,
                                  static_cast<uint64_t>(hop.frontier[i]),
                                  position,
                                  hop.relation->edge_weight + first,
                                  hop.cumulative + first,
                                  degree,
                                  words,
                                  blocks};
      count = pick_weighted(target, most, hop.replace, scratch.weight, edge);
      for (int64_t e = 0; e < count; ++e) edge[e] += first;
    } else {
      for (int64_t e = 0; e < count; ++e) edge[e] = first + e;
    }
    hop.count[i] = static_cast<uint32_t>(count);
    out.size += count;
  }
}

}  // namespace

void throw_bad_indptr(int number) {
  throw std::runtime_error(name_of(number) +
                           ": indptr is not ascending within [0, number of edges], or a node has "
                           "2^32 edges");
}

void throw_bad_source(int number, int64_t position, int64_t source, int64_t num_sources) {
  throw std::runtime_error(name_of(number) + ": indices hold the node " + std::to_string(source) +
                           " at position " + std::to_string(position) +
                           ", outside the source type's nodes [0, " + std::to_string(num_sources) +
                           ")");
}

void EdgeBuffer::reserve(int64_t wanted) {
  if (wanted <= capacity) return;
  const int64_t next = std::max(wanted, capacity + capacity / 2);
  for (std::unique_ptr<int64_t[]>* array : {&edge, &source}) {
    auto larger = std::make_unique_for_overwrite<int64_t[]>(next);
    if (size) std::memcpy(larger.get(), array->get(), size * sizeof(int64_t));
    *array = std::move(larger);
  }
  capacity = next;
}

void expand(const RelationHop& hop, int64_t begin, int64_t end, ExpandScratch& scratch,
            EdgeBuffer& out) {
  read_extents(hop, begin, end, scratch);
  with_index_type(*hop.relation, [&]<class Index>(const Index*) {
    if (hop.seed_time) keep_in_time<Index>(hop, begin, end, scratch);
    if (hop.labor) {
      const std::vector<Index> lists = read_lists<Index>(hop, end - begin, scratch);
      return pick_by_source<Index>(hop, begin, end, lists.data(), scratch, out);
    }
    const int64_t from = out.size;
    if (hop.cumulative) {
      pick_by_weight(hop, begin, end, scratch, out);
    } else {
      pick_uniformly(hop, begin, end, scratch, out);
    }
    read_sources<Index>(hop, from, out);
  });
}

void expand_among(const Relation& relation, int number, int64_t num_sources,
                  const NodePlaces& sources, const int64_t* targets, int64_t count, uint32_t* found,
                  EdgeBuffer& out) {
  with_index_type(relation, [&]<class Index>(const Index*) {
    const Index* const indices = static_cast<const Index*>(relation.indices);
    for (int64_t i = 0; i < count; ++i) {
      const Extent extent = read_extent(relation, number, targets[i]);
      const int64_t end = extent.first + extent.degree, before = out.size;
      for (int64_t e = extent.first; e < end; ++e) {
        const int64_t source = indices[e];
        if (is_outside(source, num_sources)) throw_bad_source(number, e, source, num_sources);
        const int64_t place = sources.find(source);
        if (place < 0) continue;
        out.reserve(out.size + 1);
        out.edge[out.size] = e;
        out.source[out.size++] = place;
      }
      found[i] = static_cast<uint32_t>(out.size - before);
    }
  });
}

}  // namespace gnnsys
