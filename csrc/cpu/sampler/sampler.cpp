#include "gnnsys/sampler/sampler.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "draws.hpp"
#include "sampler/batch_arrays.hpp"
#include "sampler/checks.hpp"
#include "sampler/chunks.hpp"
#include "sampler/expand.hpp"
#include "sampler/labor.hpp"
#include "sampler/node_places.hpp"
#include "sampler/trees.hpp"
#include "sampler/uniform.hpp"
#include "sampler/weights.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kChunk = 256;     // frontier nodes that one thread expands at a time
constexpr int64_t kWideChunk = 32;  // where all their neighbours are read

}  // namespace

// What one batch in the making needs; kept from batch to batch.
struct Sampler::Context {
  struct Type {
    NodePlaces places;
    TreePlaces trees;  // the places where trees are disjoint
    CoarseDraws coarse;
    GrowingArray node, tree;
    int64_t nodes = 0;
    int64_t begin = 0, end = 0;  // the frontier
  };
  struct Edges {
    GrowingArray row, edge;
    std::vector<uint32_t> count;  // edges of each target; of a uniform relation the columns instead
                                  // lie behind the rows
    int64_t size = 0;
  };

  std::vector<Type> types;
  std::vector<Edges> edges;
  std::vector<int64_t> seed_time;      // per tree
  std::vector<ExpandScratch> scratch;  // per thread
  std::vector<std::unique_ptr<EdgeBuffer>> spare;
  UniformScratch uniform;

  // Empties the places of a type for a batch that has at most so many.
  void open_places(std::size_t number, int64_t num_nodes, int64_t places) {
    if (places >= UINT32_MAX) {
      throw std::length_error("type " + std::to_string(number) + " may have " +
                              std::to_string(places) +
                              " places in the batch, the sampler takes less than 2^32 - 1");
    }
    types[number].places.open(num_nodes, places);
  }
};

namespace {

// About how many in-edges the nodes have; what a bad indptr adds does no harm.
int64_t count_edges(const Relation& relation, const int64_t* nodes, int64_t count) {
  uint64_t edges = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kDistance < count) __builtin_prefetch(relation.indptr + nodes[i + kDistance]);
    edges += static_cast<uint64_t>(relation.indptr[nodes[i] + 1]) -
             static_cast<uint64_t>(relation.indptr[nodes[i]]);
  }
  return static_cast<int64_t>(edges);
}

// The two rows of an edge index in one array: `row` grew to `size` sources, targets are counted.
EdgeIndex finish_edge_index(GrowingArray& row, const std::vector<uint32_t>& count, int64_t size,
                            BufferPool& pool) {
  row.reserve(pool, size, std::max<int64_t>(1, 2 * size));
  int64_t* col = row.data() + size;
  for (std::size_t target = 0; target < count.size(); ++target) {
    col = std::fill_n(col, count[target], static_cast<int64_t>(target));
  }
  return row.finish(2 * size);
}

// Of a relation, or -1 where there are none.
int64_t limit_of(const std::vector<int64_t>& limits, std::size_t number) {
  return limits.empty() ? -1 : limits[number];
}

IdArray finish_ids(GrowingArray& array, int64_t size, BufferPool& pool) {
  array.reserve(pool, size, std::max<int64_t>(1, size));
  return array.finish(size);
}

}  // namespace

// Draws one batch.
struct Sampler::Run {
  Sampler& sampler;
  const SampleRequest& request;
  Context& context;
  BufferPool& pool = *sampler.pool_;
  const TypedGraph& graph = sampler.graph_;
  const std::size_t hops = request.fanouts.empty() ? 0 : request.fanouts[0].size();

  void start() {
    for (std::size_t t = 0; t < context.types.size(); ++t) {
      Context::Type& type = context.types[t];
      type.nodes = type.begin = type.end = 0;
      if (request.disjoint) {
        type.trees.clear();
        continue;
      }
      int64_t seeds = 0;
      for (const SeedGroup& group : request.seeds) {
        if (group.type == static_cast<int>(t)) seeds += group.count;
      }
      context.open_places(t, graph.num_nodes[t], graph.num_nodes[t] + seeds);
    }
    for (Context::Edges& edges : context.edges) {
      edges.size = 0;
      edges.count.clear();
    }
    context.seed_time.clear();
  }

  void place_seeds() {
    int64_t tree = 0;
    for (const SeedGroup& seeds : request.seeds) {
      Context::Type& type = context.types[seeds.type];
      make_room(type, seeds.count);
      for (int64_t i = 0; i < seeds.count; ++i, ++tree) {
        const int64_t v = seeds.ids[i];
        type.node.data()[type.nodes] = v;
        if (request.disjoint) {
          type.tree.data()[type.nodes] = tree;
          type.trees.insert(TreePlaces::key(tree, v), type.nodes);
        } else {
          type.places.insert(v, type.nodes);
        }
        ++type.nodes;
        if (sampler.timed_) {
          context.seed_time.push_back(seeds.times ? seeds.times[i]
                                                  : graph.node_time[seeds.type][v]);
        }
      }
    }
  }

  // For so many more nodes; relabel() writes one place beyond those in use.
  void make_room(Context::Type& type, int64_t more) {
    type.node.reserve(pool, type.nodes, type.nodes + more + 1);
    if (!request.disjoint) return type.places.reserve(type.nodes + more);
    type.tree.reserve(pool, type.nodes, type.nodes + more);
    type.trees.reserve(type.nodes + more);
  }

  RelationHop hop_of(std::size_t number, std::size_t hop) const {
    const Relation& relation = graph.relations[number];
    const Context::Type& target = context.types[relation.target_type];
    const int64_t* const source_time = graph.node_time[relation.source_type];
    const uint64_t stream = request.labor ? relation.source_type : number;
    const int64_t fanout = request.fanouts[number][hop];
    int64_t newest = limit_of(request.newest, number);
    if (request.last && fanout >= 0) newest = newest < 0 ? fanout : std::min(newest, fanout);
    return {&relation,
            static_cast<int>(number),
            graph.num_nodes[relation.source_type],
            sampler.cumulative_[number].get(),
            source_time,
            source_time || relation.edge_time ? context.seed_time.data() : nullptr,
            target.node.data() + target.begin,
            request.disjoint ? target.tree.data() + target.begin : nullptr,
            stream_key(request.seed, request.epoch, request.group, request.first_hop + hop, stream),
            fanout,
            request.replace,
            limit_of(request.window, number),
            newest,
            request.labor,
            nullptr,
            context.edges[number].count.data() + target.begin,
            choose_pick_positions(sampler.isa_),
            choose_philox_nodes(sampler.isa_)};
  }

  void run_relation(std::size_t number, std::size_t hop_number) {
    const Relation& relation = graph.relations[number];
    const Context::Type& target = context.types[relation.target_type];
    Context::Type& source = context.types[relation.source_type];
    Context::Edges& edges = context.edges[number];
    const bool uniform = is_uniform(number);
    if (!uniform) edges.count.resize(target.end);
    const int64_t frontier = target.end - target.begin;
    if (frontier == 0 || request.fanouts[number][hop_number] == 0) return;

    // Where sources are of the targets' type their arrays may move as they grow: held here, the
    // frontier stays where it is.
    const std::shared_ptr<char> nodes = target.node.area, trees = target.tree.area;
    RelationHop hop = hop_of(number, hop_number);
    if (uniform) {
      return relation.wide ? expand_uniformly<int64_t>(hop, frontier)
                           : expand_uniformly<int32_t>(hop, frontier);
    }
    // Draws that belong to a tree serve nobody else.
    if (request.labor && !request.disjoint &&
        CoarseDraws::pays(hop.num_sources, count_edges(relation, hop.frontier, frontier))) {
      hop.coarse = source.coarse.of(hop.key, hop.num_sources, hop.philox, sampler.threads_);
    }
    const bool reads_all = hop.labor || hop.fanout < 0;
    produce_in_order(
        sampler.threads_, frontier, reads_all ? kWideChunk : kChunk, context.spare,
        [&](int thread, int64_t begin, int64_t end, EdgeBuffer& out) {
          expand(hop, begin, end, context.scratch[thread], out);
        },
        [&](int64_t begin, int64_t end, const EdgeBuffer& found) {
          edges.row.reserve(pool, edges.size, edges.size + found.size);
          edges.edge.reserve(pool, edges.size, edges.size + found.size);
          make_room(source, found.size);
          std::copy_n(found.edge.get(), found.size, edges.edge.data() + edges.size);
          int64_t* const row = edges.row.data() + edges.size;
          if (request.disjoint) {
            place_in_trees(source, hop, begin, end, found.source.get(), row);
          } else {
            source.nodes = source.places.relabel(found.source.get(), found.size, source.nodes,
                                                 source.node.data(), row);
          }
          edges.size += found.size;
        });
  }

  bool is_uniform(std::size_t number) const {
    return !request.disjoint && !request.labor && !sampler.cumulative_[number];
  }

  // The extent of every frontier node, and where each chunk's edges begin; returns the hop's edges.
  template <class Index>
  int64_t measure(const UniformHop& hop, int number, int64_t frontier,
                  const UniformKernels<Index>& kernels) {
    const int64_t chunks = (frontier + kChunk - 1) / kChunk;
    std::vector<int64_t>& offset = context.uniform.chunk_offset;
    offset.assign(chunks + 1, 0);
    parallel_for(sampler.threads_, chunks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        offset[c + 1] = kernels.measure(hop, c * kChunk, std::min(frontier, (c + 1) * kChunk));
      }
    });
    for (int64_t c = 0; c < chunks; ++c) {
      if (offset[c + 1] < 0) throw_bad_indptr(number);
      offset[c + 1] += offset[c];
    }
    return offset[chunks];
  }

  template <class Index>
  void expand_uniformly(const RelationHop& relation_hop, int64_t frontier) {
    const UniformKernels<Index> kernels = choose_uniform_kernels<Index>(sampler.isa_);
    const Relation& relation = *relation_hop.relation;
    Context::Type& source = context.types[relation.source_type];
    Context::Edges& edges = context.edges[relation_hop.number];
    UniformScratch& scratch = context.uniform;
    if (static_cast<int64_t>(scratch.first.size()) < frontier) {
      scratch.first.resize(frontier + frontier / 8);
      scratch.degree.resize(frontier + frontier / 8);
    }
    const UniformHop hop{
        &relation,
        relation_hop.num_sources,
        relation_hop.pick,
        {relation_hop.key, relation_hop.fanout, relation_hop.replace, relation_hop.frontier,
         nullptr, scratch.first.data(), scratch.degree.data()},
        context.types[relation.target_type].begin,
        scratch.first.data(),
        scratch.degree.data()};
    const int64_t count = measure(hop, relation_hop.number, frontier, kernels);
    if (count == 0) return;
    const int64_t size = edges.size + count;
    source.node.reserve(pool, source.nodes, source.nodes + std::min(count, hop.num_sources) + 1);
    edges.edge.reserve(pool, edges.size, size);
    // Rows, then columns: those of the hops before make room for the rows of this one. They move
    // once, also where the array grows.
    const std::shared_ptr<char> before = edges.row.area;
    const int64_t* const columns = edges.row.data() + edges.size;
    edges.row.reserve(pool, edges.size, 2 * size);
    if (edges.size) {
      std::memmove(edges.row.data() + size, columns, edges.size * sizeof(int64_t));
    }
    int64_t* const row = edges.row.data() + edges.size;
    int64_t* const col = row + size;
    int64_t* const edge = edges.edge.data() + edges.size;
    if (const std::size_t bytes = count * sizeof(Index); bytes > scratch.neighbor_bytes) {
      scratch.neighbor = pool.acquire(bytes + bytes / 8);
      scratch.neighbor_bytes = bytes + bytes / 8;
    }
    auto* const neighbor = reinterpret_cast<Index*>(scratch.neighbor.get());
    const std::vector<int64_t>& offset = scratch.chunk_offset;
    const auto pick = [&](int thread, int64_t begin, int64_t end, EdgeBuffer&) {
      const int64_t at = offset[begin / kChunk];
      kernels.pick(hop, begin, end, context.scratch[thread].pick, edge + at, col + at);
    };
    if (relation.file) {
      // All that the hop draws before the first neighbour of it is looked at: read together.
      produce_in_order(sampler.threads_, frontier, kChunk, context.spare, pick,
                       [](int64_t, int64_t, const EdgeBuffer&) {});
      relation.file->gather(edge, count, neighbor);
    }
    produce_in_order(
        sampler.threads_, frontier, kChunk, context.spare,
        [&](int thread, int64_t begin, int64_t end, EdgeBuffer& buffer) {
          const int64_t at = offset[begin / kChunk], found = offset[begin / kChunk + 1] - at;
          if (!relation.file) {
            pick(thread, begin, end, buffer);
            if (kernels.read(hop, edge + at, found, neighbor + at)) return;
          }
          for (int64_t e = at; e < at + found; ++e) {
            if (is_outside(neighbor[e], hop.num_sources)) {
              throw_bad_source(relation_hop.number, edge[e], neighbor[e], hop.num_sources);
            }
          }
        },
        [&](int64_t begin, int64_t, const EdgeBuffer&) {
          const int64_t at = offset[begin / kChunk], found = offset[begin / kChunk + 1] - at;
          source.places.reserve(source.nodes + found);
          source.nodes = source.places.relabel(neighbor + at, found, source.nodes,
                                               source.node.data(), row + at);
        });
    edges.size = size;
  }

  // Gives the sources of the targets [begin, end) their places in the targets' trees.
  void place_in_trees(Context::Type& type, const RelationHop& hop, int64_t begin, int64_t end,
                      const int64_t* source, int64_t* row) const {
    for (int64_t target = begin; target < end; ++target) {
      const int64_t tree = hop.tree[target];
      const int64_t count = hop.count[target];
      for (int64_t e = 0; e < count; ++e) {
        type.trees.prefetch(TreePlaces::key(tree, source[e]));
      }
      for (int64_t e = 0; e < count; ++e) {
        row[e] = type.trees.insert(TreePlaces::key(tree, source[e]), type.nodes);
        if (row[e] < type.nodes) continue;
        type.node.data()[type.nodes] = source[e];
        type.tree.data()[type.nodes] = tree;
        ++type.nodes;
      }
      source += count;
      row += count;
    }
  }

  TypedBatch finish() {
    TypedBatch batch;
    for (Context::Type& type : context.types) {
      batch.node.push_back(finish_ids(type.node, type.nodes, pool));
      if (request.disjoint) batch.batch.push_back(finish_ids(type.tree, type.nodes, pool));
      if (!request.disjoint) type.places.close(type.nodes);
    }
    for (std::size_t r = 0; r < context.edges.size(); ++r) {
      Context::Edges& edges = context.edges[r];
      batch.edge_index.push_back(is_uniform(r)
                                     ? finish_ids(edges.row, 2 * edges.size, pool)
                                     : finish_edge_index(edges.row, edges.count, edges.size, pool));
      batch.edge.push_back(finish_ids(edges.edge, edges.size, pool));
    }
    return batch;
  }

  TypedBatch run() {
    start();
    place_seeds();
    std::vector<std::vector<int64_t>> nodes_per_hop(context.types.size());
    std::vector<std::vector<int64_t>> edges_per_hop(context.edges.size());
    for (std::size_t hop = 0; hop <= hops; ++hop) {
      for (std::size_t t = 0; t < context.types.size(); ++t) {
        Context::Type& type = context.types[t];
        type.begin = type.end;
        type.end = type.nodes;
        nodes_per_hop[t].push_back(type.end - type.begin);
      }
      if (hop == hops) break;
      for (std::size_t r = 0; r < context.edges.size(); ++r) {
        const int64_t before = context.edges[r].size;
        run_relation(r, hop);
        edges_per_hop[r].push_back(context.edges[r].size - before);
      }
    }
    TypedBatch batch = finish();
    batch.nodes_per_hop = std::move(nodes_per_hop);
    batch.edges_per_hop = std::move(edges_per_hop);
    return batch;
  }
};

Sampler::Sampler(TypedGraph graph, int threads, Isa isa)
    : graph_(std::move(graph)), isa_(isa), threads_(threads), pool_(BufferPool::shared()) {
  check_graph(graph_);
  timed_ = has_times(graph_);
  for (std::size_t r = 0; r < graph_.relations.size(); ++r) {
    const Relation& relation = graph_.relations[r];
    const int64_t targets = graph_.num_nodes[relation.target_type];
    cumulative_.push_back(relation.edge_weight ? sum_weights(relation, targets, static_cast<int>(r))
                                               : nullptr);
  }
}

Sampler::~Sampler() = default;

int64_t Sampler::map_bytes(int64_t num_nodes, int64_t batch_nodes) {
  return NodePlaces::bytes(num_nodes, batch_nodes);
}

std::unique_ptr<Sampler::Context> Sampler::take_context() {
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto context = std::move(idle_.back());
      idle_.pop_back();
      return context;
    }
  }
  auto context = std::make_unique<Context>();
  context->types = std::vector<Context::Type>(graph_.num_nodes.size());
  context->edges = std::vector<Context::Edges>(graph_.relations.size());
  context->scratch.resize(threads_.size());
  return context;
}

void Sampler::give_back(std::unique_ptr<Context> context) {
  std::lock_guard lock(mutex_);
  idle_.push_back(std::move(context));
}

TypedBatch Sampler::sample(const SampleRequest& request) {
  check_request(graph_, request);
  // A batch that throws leaves its context behind half used: it is dropped, not given back.
  std::unique_ptr<Context> context = take_context();
  TypedBatch batch = Run{*this, request, *context}.run();
  give_back(std::move(context));
  return batch;
}

InducedEdges Sampler::induce(const std::vector<std::span<const int64_t>>& nodes) {
  check_nodes(graph_, nodes);
  std::unique_ptr<Context> context = take_context();
  for (std::size_t t = 0; t < nodes.size(); ++t) {
    Context::Type& type = context->types[t];
    const auto count = static_cast<int64_t>(nodes[t].size());
    context->open_places(t, graph_.num_nodes[t], count);
    type.places.reserve(count);
    for (int64_t i = 0; i < count; ++i) type.places.insert(nodes[t][i], i);
  }
  InducedEdges induced;
  for (std::size_t r = 0; r < graph_.relations.size(); ++r) {
    const Relation& relation = graph_.relations[r];
    const Context::Type& source = context->types[relation.source_type];
    const std::span<const int64_t> targets = nodes[relation.target_type];
    Context::Edges& edges = context->edges[r];
    edges.size = 0;
    edges.count.assign(targets.size(), 0);
    produce_in_order(
        threads_, static_cast<int64_t>(targets.size()), kWideChunk, context->spare,
        [&](int, int64_t begin, int64_t end, EdgeBuffer& out) {
          expand_among(relation, static_cast<int>(r), graph_.num_nodes[relation.source_type],
                       source.places, targets.data() + begin, end - begin,
                       edges.count.data() + begin, out);
        },
        [&](int64_t, int64_t, const EdgeBuffer& found) {
          edges.row.reserve(*pool_, edges.size, edges.size + found.size);
          edges.edge.reserve(*pool_, edges.size, edges.size + found.size);
          std::copy_n(found.source.get(), found.size, edges.row.data() + edges.size);
          std::copy_n(found.edge.get(), found.size, edges.edge.data() + edges.size);
          edges.size += found.size;
        });
    induced.edge_index.push_back(finish_edge_index(edges.row, edges.count, edges.size, *pool_));
    induced.edge.push_back(finish_ids(edges.edge, edges.size, *pool_));
  }
  for (std::size_t t = 0; t < nodes.size(); ++t) {
    context->types[t].places.close(static_cast<int64_t>(nodes[t].size()));
  }
  give_back(std::move(context));
  return induced;
}

}  // namespace gnnsys
