#include "gnnsys/sampler/sampler.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "draws.hpp"
#include "gnnsys/philox.hpp"
#include "sampler/batch_arrays.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kChunk = 256;  // frontier nodes that one thread expands at a time

// One hop; the targets are the frontier.
struct Hop {
  const CscGraph* graph;
  PickPositions pick;
  Targets targets;
  int64_t first_local;  // of the frontier's first node in the batch
  int64_t* first;       // what targets.first and targets.degree read
  uint32_t* degree;
};

#define GNNSYS_NAMESPACE generic
#if defined(__x86_64__)
#define GNNSYS_TARGET [[gnu::target("sse2")]]
#else
#define GNNSYS_TARGET
#endif
#include "sampler/sampler_kernel.inl"
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#if defined(__x86_64__)

#define GNNSYS_NAMESPACE avx2
#define GNNSYS_TARGET [[gnu::target("avx2,bmi,bmi2")]]
#include "sampler/sampler_kernel.inl"
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_NAMESPACE avx512
#define GNNSYS_TARGET \
  [[gnu::target("avx512f,avx512dq,avx512bw,avx512vl,bmi,bmi2,prefer-vector-width=512")]]
#include "sampler/sampler_kernel.inl"
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#endif

template <class Index>
struct Kernels {
  int64_t (*measure)(const Hop&, int64_t, int64_t);
  bool (*expand)(const Hop&, int64_t, int64_t, int64_t, PickScratch&, int64_t*, int64_t*, Index*);
};

template <class Index>
Kernels<Index> choose_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return {avx512::measure, avx512::expand<Index>};
  if (isa == Isa::avx2) return {avx2::measure, avx2::expand<Index>};
#else
  (void)isa;
#endif
  return {generic::measure, generic::expand<Index>};
}

}  // namespace

// What one batch in the making needs; kept from batch to batch.
struct Sampler::Context {
  // map[v] - base is the place of node v in the batch if map[v] >= base: raising base past all
  // values in use empties the map without touching it.
  std::shared_ptr<char> map_area;
  uint64_t base = 1;
  GrowingArray node, row, col, edge;
  std::vector<int64_t> first;         // (frontier)
  std::vector<uint32_t> degree;       // (frontier)
  std::vector<int64_t> chunk_offset;  // (chunks + 1) first edge of each chunk of the hop
  std::vector<std::atomic<bool>> expanded;
  std::shared_ptr<char> neighbor_area;  // (edges of the hop) Index
  std::size_t neighbor_bytes = 0;
  std::vector<PickScratch> scratch;  // per thread

  uint32_t* map() const { return reinterpret_cast<uint32_t*>(map_area.get()); }
};

Sampler::Sampler(CscGraph graph, int threads, Isa isa)
    : graph_(graph), isa_(isa), threads_(threads), pool_(BufferPool::shared()) {
  if (graph.num_nodes >= kMaxNodes) {
    throw std::length_error("the graph has " + std::to_string(graph.num_nodes) +
                            " nodes, the sampler takes less than " + std::to_string(kMaxNodes));
  }
}

Sampler::~Sampler() = default;

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
  context->map_area = map_zeros(graph_.num_nodes * sizeof(uint32_t));
  context->scratch.resize(threads_.size());
  return context;
}

void Sampler::give_back(std::unique_ptr<Context> context) {
  std::lock_guard lock(mutex_);
  idle_.push_back(std::move(context));
}

namespace {

void check(const CscGraph& graph, const SampleRequest& request) {
  for (int64_t i = 0; i < request.num_seeds; ++i) {
    if (request.seeds[i] < 0 || request.seeds[i] >= graph.num_nodes) {
      throw std::out_of_range("seed " + std::to_string(request.seeds[i]) + " at position " +
                              std::to_string(i) + " is outside the graph's nodes [0, " +
                              std::to_string(graph.num_nodes) + ")");
    }
  }
  for (int64_t fanout : request.fanouts) {
    if (fanout < -1 || fanout >= kMaxFanout) {
      throw std::invalid_argument("fanout " + std::to_string(fanout) +
                                  " is neither -1 (all neighbours) nor in [0, " +
                                  std::to_string(kMaxFanout) + ")");
    }
  }
}

}  // namespace

// Draws all batches of one Sampler: templated over the index type, so kept out of the header.
template <class Index, class Context>
struct BatchRun {
  const CscGraph& graph;
  const SampleRequest& request;
  const Kernels<Index> kernels;
  const PickPositions pick;
  ThreadPool& threads;
  BufferPool& pool;
  Context& context;
  int64_t nodes = 0;
  int64_t edges = 0;

  void place_seeds() {
    context.node.reserve(pool, 0, request.num_seeds + 1);
    uint32_t* const map = context.map();
    for (int64_t i = 0; i < request.num_seeds; ++i) {
      const int64_t v = request.seeds[i];
      context.node.data()[i] = v;
      if (map[v] < context.base) map[v] = static_cast<uint32_t>(context.base + i);
    }
    nodes = request.num_seeds;
  }

  // Every frontier node's extent, and where each chunk's edges begin; returns the hop's edges.
  int64_t measure(const Hop& hop, int64_t frontier, int64_t chunks) {
    context.chunk_offset.resize(chunks + 1);
    std::atomic<bool> bad{false};
    parallel_for(threads, chunks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t count =
            kernels.measure(hop, c * kChunk, std::min(frontier, (c + 1) * kChunk));
        if (count < 0) bad.store(true, std::memory_order_relaxed);
        context.chunk_offset[c + 1] = count;
      }
    });
    if (bad) {
      throw std::runtime_error(
          "indptr is not ascending within [0, number of edges], or a node has 2^32 edges");
    }
    context.chunk_offset[0] = 0;
    for (int64_t c = 0; c < chunks; ++c) context.chunk_offset[c + 1] += context.chunk_offset[c];
    return context.chunk_offset[chunks];
  }

  Index* reserve_neighbors(int64_t count) {
    const std::size_t bytes = count * sizeof(Index);
    if (bytes > context.neighbor_bytes) {
      context.neighbor_area = pool.acquire(bytes + bytes / 8);
      context.neighbor_bytes = bytes + bytes / 8;
    }
    return reinterpret_cast<Index*>(context.neighbor_area.get());
  }

  // Threads expand chunks in any order; whoever finishes one relabels those whose turn has come,
  // one thread at a time and in order, so that places in the batch do not depend on the threads.
  void expand(const Hop& hop, int64_t frontier, int64_t chunks, Index* neighbor) {
    if (static_cast<int64_t>(context.expanded.size()) < chunks) {
      context.expanded = std::vector<std::atomic<bool>>(chunks + chunks / 8);
    }
    for (int64_t c = 0; c < chunks; ++c) {
      context.expanded[c].store(false, std::memory_order_relaxed);
    }
    std::atomic<int64_t> next_chunk{0};
    std::atomic<bool> bad{false};
    std::mutex turn;
    int64_t relabeled = 0;  // chunks; guarded by `turn`
    auto relabel_ready = [&] {
      while (relabeled < chunks && context.expanded[relabeled].load(std::memory_order_acquire)) {
        const int64_t at = context.chunk_offset[relabeled];
        nodes = relabel(neighbor + at, context.chunk_offset[relabeled + 1] - at, context.map(),
                        context.base, nodes, context.node.data(), context.row.data() + edges + at);
        ++relabeled;
      }
    };
    threads.run([&](int thread) {
      for (;;) {
        const int64_t c = next_chunk.fetch_add(1, std::memory_order_relaxed);
        if (c >= chunks || bad.load(std::memory_order_relaxed)) return;
        const int64_t at = context.chunk_offset[c];
        if (!kernels.expand(hop, c * kChunk, std::min(frontier, (c + 1) * kChunk),
                            context.chunk_offset[c + 1] - at, context.scratch[thread],
                            context.edge.data() + edges + at, context.col.data() + edges + at,
                            neighbor + at)) {
          bad.store(true);
          return;
        }
        context.expanded[c].store(true, std::memory_order_release);
        if (std::unique_lock lock(turn, std::try_to_lock); lock.owns_lock()) relabel_ready();
      }
    });
    if (bad) throw std::runtime_error("indices hold a node outside [0, number of nodes)");
    relabel_ready();
  }

  void run_hop(std::size_t number, int64_t begin) {
    const int64_t frontier = nodes - begin;
    const int64_t chunks = (frontier + kChunk - 1) / kChunk;
    if (static_cast<int64_t>(context.first.size()) < frontier) {
      context.first.resize(frontier + frontier / 8);
      context.degree.resize(frontier + frontier / 8);
    }
    Hop hop{&graph,
            pick,
            {stream_key(request.seed, request.epoch, request.group, number, 0),
             request.fanouts[number], request.replace, context.node.data() + begin, nullptr,
             context.first.data(), context.degree.data()},
            begin,
            context.first.data(),
            context.degree.data()};
    const int64_t count = measure(hop, frontier, chunks);
    context.node.reserve(pool, nodes, nodes + std::min(count, graph.num_nodes) + 1);
    hop.targets.node = context.node.data() + begin;
    context.row.reserve(pool, edges, edges + count);
    context.col.reserve(pool, edges, edges + count);
    context.edge.reserve(pool, edges, edges + count);
    expand(hop, frontier, chunks, reserve_neighbors(count));
    edges += count;
  }

  SampledBatch run() {
    SampledBatch batch;
    place_seeds();
    batch.nodes_per_hop.push_back(nodes);
    for (std::size_t number = 0, begin = 0; number < request.fanouts.size(); ++number) {
      const int64_t nodes_before = nodes, edges_before = edges;
      run_hop(number, static_cast<int64_t>(begin));
      batch.nodes_per_hop.push_back(nodes - nodes_before);
      batch.edges_per_hop.push_back(edges - edges_before);
      begin = static_cast<std::size_t>(nodes_before);
    }
    for (GrowingArray* array : {&context.row, &context.col, &context.edge}) {
      array->reserve(pool, 0, 1);
    }
    batch.node = context.node.finish(nodes);
    batch.row = context.row.finish(edges);
    batch.col = context.col.finish(edges);
    batch.edge = context.edge.finish(edges);
    context.base += static_cast<uint64_t>(nodes);
    return batch;
  }
};

SampledBatch Sampler::sample(const SampleRequest& request) {
  check(graph_, request);
  std::unique_ptr<Context> context = take_context();
  const uint64_t labels = static_cast<uint64_t>(graph_.num_nodes + request.num_seeds);
  if (context->base + labels > UINT32_MAX) {
    std::memset(context->map_area.get(), 0, graph_.num_nodes * sizeof(uint32_t));
    context->base = 1;
  }
  // A batch that throws leaves its context behind half used: it is dropped, not given back.
  SampledBatch batch;
  if (graph_.wide) {
    batch =
        BatchRun<int64_t, Context>{
            graph_, request, choose_kernels<int64_t>(isa_), choose_pick_positions(isa_), threads_,
            *pool_, *context}
            .run();
  } else {
    batch =
        BatchRun<int32_t, Context>{
            graph_, request, choose_kernels<int32_t>(isa_), choose_pick_positions(isa_), threads_,
            *pool_, *context}
            .run();
  }
  give_back(std::move(context));
  return batch;
}

}  // namespace gnnsys
