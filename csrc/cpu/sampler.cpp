#include "gnnsys/sampler.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "gnnsys/philox.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gnnsys {
namespace {

constexpr int64_t kDistance = 32;  // how far ahead of their use scattered reads are prefetched
constexpr int64_t kChunk = 256;    // frontier nodes that one thread expands at a time
constexpr int64_t kMaxDegree = (int64_t{1} << 32) - 1;
constexpr int64_t kMaxFanout = int64_t{1} << 24;
constexpr int64_t kMaxNodes = (int64_t{1} << 32) - (int64_t{1} << 24);
constexpr std::size_t kRetain = std::size_t{512} << 20;
constexpr uint32_t kLaneSlack = 32;  // words that pick_by_rank reads past a node's own

// One hop; arrays are indexed by the position in the frontier.
struct Hop {
  const CscGraph* graph;
  uint64_t key;
  int64_t fanout;
  bool replace;
  int64_t first_local;      // of frontier[0] in the batch
  const int64_t* frontier;  // nodes to expand
  int64_t* first;           // position of their first edge in the CSC
  uint32_t* degree;
};

// What one thread needs for one chunk.
struct Scratch {
  std::vector<int64_t> nodes;   // (kChunk) those that draw
  std::vector<uint32_t> words;  // (kChunk, blocks, 4) random words of those nodes

  void reserve(int64_t count, uint32_t blocks) {
    if (static_cast<int64_t>(nodes.size()) < count + 1) nodes.resize(count + 1);
    const std::size_t need = count * blocks * kDrawsPerBlock + kLaneSlack;
    if (words.size() < need) words.resize(need);
  }
};

inline bool needs_draws(int64_t degree, int64_t fanout, bool replace) {
  return replace ? degree > 0 : degree > fanout;
}

inline int64_t sampled_edges(int64_t degree, int64_t fanout, bool replace) {
  if (fanout < 0) return degree;
  if (replace) return degree > 0 ? fanout : 0;
  return std::min(degree, fanout);
}

// The numbered draws of one node; `words` holds the first try of each.
struct Draws {
  uint64_t key;
  uint64_t node;
  const uint32_t* words;

  uint32_t bounded(uint32_t draw, uint64_t bound) const {
    const uint64_t product = words[draw] * bound;
    if (__builtin_expect(static_cast<uint32_t>(product) < bound, 0)) {
      return retry(draw, bound, product);
    }
    return static_cast<uint32_t>(product >> 32);
  }

  [[gnu::noinline, gnu::cold]] uint32_t retry(uint32_t draw, uint64_t bound,
                                              uint64_t product) const {
    const uint64_t rejected = (uint64_t{1} << 32) % bound;
    for (uint32_t step = kRetryStep; static_cast<uint32_t>(product) < rejected;
         step += kRetryStep) {
      const PhiloxBlock block = draw_block(key, node, 0, draw / kDrawsPerBlock + step);
      product = block[draw % kDrawsPerBlock] * bound;
    }
    return static_cast<uint32_t>(product >> 32);
  }
};

void pick_with_replacement(const Draws& draws, uint32_t n, uint32_t k, int64_t first,
                           int64_t* edge) {
  for (uint32_t i = 0; i < k; ++i) edge[i] = first + draws.bounded(i, n);
  std::sort(edge, edge + k);
}

// Floyd's method with an open-addressed set, for any k and n.
[[gnu::noinline]] void pick_by_set(const Draws& draws, uint32_t n, uint32_t k, int64_t first,
                                   int64_t* edge) {
  std::size_t slots = 8;
  while (slots < std::size_t{2} * k) slots *= 2;
  thread_local std::vector<uint64_t> set;  // 1 + position; 0 is free
  set.assign(slots, 0);
  auto insert = [&](uint64_t position) {
    std::size_t at = mix64(position) & (slots - 1);
    for (; set[at]; at = (at + 1) & (slots - 1)) {
      if (set[at] == position + 1) return false;
    }
    set[at] = position + 1;
    return true;
  };
  for (uint32_t i = 0; i < k; ++i) {
    const uint32_t last = n - k + i;
    uint32_t pick = draws.bounded(i, uint64_t{last} + 1);
    if (!insert(pick)) insert(pick = last);
    edge[i] = first + pick;
  }
  std::sort(edge, edge + k);
}

// Random words of `count` nodes: words[(i * blocks + b) * 4 …] is block b of nodes[i].
namespace generic {
void philox_nodes(uint64_t key, const int64_t* nodes, int64_t count, uint32_t blocks,
                  uint32_t* words) {
  for (int64_t i = 0; i < count; ++i) {
    for (uint32_t b = 0; b < blocks; ++b, words += kDrawsPerBlock) {
      const PhiloxBlock block = draw_block(key, static_cast<uint64_t>(nodes[i]), 0, b);
      std::memcpy(words, block.data(), sizeof block);
    }
  }
}
}  // namespace generic

#define GNNSYS_NAMESPACE generic
#if defined(__x86_64__)
#define GNNSYS_TARGET [[gnu::target("sse2")]]
#else
#define GNNSYS_TARGET
#endif
#include "sampler_kernel.inl"
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#if defined(__x86_64__)

// A vector holds one counter word of several nodes, each in the low half of a 64-bit lane: what the
// 32-bit multiplication reads. High halves carry rubbish until the words are packed.
namespace avx2 {
[[gnu::target("avx2")]] void philox_nodes(uint64_t key, const int64_t* nodes, int64_t count,
                                          uint32_t blocks, uint32_t* words) {
  const __m256i m0 = _mm256_set1_epi64x(kPhiloxM0), m1 = _mm256_set1_epi64x(kPhiloxM1);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const __m256i node = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(nodes + i));
    for (uint32_t b = 0; b < blocks; ++b) {
      __m256i x0 = node, x1 = _mm256_srli_epi64(node, 32);
      __m256i x2 = _mm256_setzero_si256(), x3 = _mm256_set1_epi64x(b);
      uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
      for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        const __m256i p0 = _mm256_mul_epu32(m0, x0), p1 = _mm256_mul_epu32(m1, x2);
        x0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), x1),
                              _mm256_set1_epi64x(k0));
        x2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), x3),
                              _mm256_set1_epi64x(k1));
        x1 = p1;
        x3 = p0;
      }
      const __m256i w01 = _mm256_blend_epi32(x0, _mm256_slli_epi64(x1, 32), 0xAA);
      const __m256i w23 = _mm256_blend_epi32(x2, _mm256_slli_epi64(x3, 32), 0xAA);
      alignas(32) uint32_t packed[16];  // nodes 0, 2, 1, 3
      _mm256_store_si256(reinterpret_cast<__m256i*>(packed), _mm256_unpacklo_epi64(w01, w23));
      _mm256_store_si256(reinterpret_cast<__m256i*>(packed + 8), _mm256_unpackhi_epi64(w01, w23));
      constexpr int kPlace[4] = {0, 8, 4, 12};
      for (int lane = 0; lane < 4; ++lane) {
        std::memcpy(words + ((i + lane) * blocks + b) * kDrawsPerBlock, packed + kPlace[lane], 16);
      }
    }
  }
  generic::philox_nodes(key, nodes + i, count - i, blocks, words + i * blocks * kDrawsPerBlock);
}
}  // namespace avx2

#define GNNSYS_NAMESPACE avx2
#define GNNSYS_TARGET [[gnu::target("avx2,bmi,bmi2")]]
#include "sampler_kernel.inl"
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_AVX512 "avx512f,avx512dq,avx512bw,avx512vl,bmi,bmi2,prefer-vector-width=512"
namespace avx512 {
[[gnu::target(GNNSYS_AVX512)]] void philox_nodes(uint64_t key, const int64_t* nodes, int64_t count,
                                                 uint32_t blocks, uint32_t* words) {
  const __m512i m0 = _mm512_set1_epi64(kPhiloxM0), m1 = _mm512_set1_epi64(kPhiloxM1);
  constexpr int kXor3 = 0x96;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m512i node = _mm512_loadu_si512(nodes + i);
    for (uint32_t b = 0; b < blocks; ++b) {
      __m512i x0 = node, x1 = _mm512_srli_epi64(node, 32);
      __m512i x2 = _mm512_setzero_si512(), x3 = _mm512_set1_epi64(b);
      uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
      for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        const __m512i p0 = _mm512_mul_epu32(m0, x0), p1 = _mm512_mul_epu32(m1, x2);
        x0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), x1, _mm512_set1_epi64(k0), kXor3);
        x2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), x3, _mm512_set1_epi64(k1), kXor3);
        x1 = p1;
        x3 = p0;
      }
      const __m512i w01 = _mm512_mask_blend_epi32(0xAAAA, x0, _mm512_slli_epi64(x1, 32));
      const __m512i w23 = _mm512_mask_blend_epi32(0xAAAA, x2, _mm512_slli_epi64(x3, 32));
      alignas(64) uint32_t packed[32];  // nodes 0, 2, 4, 6, 1, 3, 5, 7
      _mm512_store_si512(packed, _mm512_unpacklo_epi64(w01, w23));
      _mm512_store_si512(packed + 16, _mm512_unpackhi_epi64(w01, w23));
      constexpr int kPlace[8] = {0, 16, 4, 20, 8, 24, 12, 28};
      for (int lane = 0; lane < 8; ++lane) {
        std::memcpy(words + ((i + lane) * blocks + b) * kDrawsPerBlock, packed + kPlace[lane], 16);
      }
    }
  }
  generic::philox_nodes(key, nodes + i, count - i, blocks, words + i * blocks * kDrawsPerBlock);
}
}  // namespace avx512

#define GNNSYS_NAMESPACE avx512
#define GNNSYS_TARGET [[gnu::target(GNNSYS_AVX512)]]
#include "sampler_kernel.inl"
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#endif

template <class Index>
struct Kernels {
  int64_t (*measure)(const Hop&, int64_t, int64_t);
  bool (*expand)(const Hop&, int64_t, int64_t, int64_t, Scratch&, int64_t*, int64_t*, Index*);
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

// A pooled array that grows; a batch is about as large as the one before it, so `hint` saves moves.
struct GrowingArray {
  std::shared_ptr<char> area;
  int64_t capacity = 0;
  int64_t hint = 0;

  int64_t* data() const { return reinterpret_cast<int64_t*>(area.get()); }

  void reserve(BufferPool& pool, int64_t used, int64_t wanted) {
    if (wanted <= capacity) return;
    const int64_t next = std::max(wanted, hint);
    std::shared_ptr<char> larger = pool.acquire(next * sizeof(int64_t));
    if (used) std::memcpy(larger.get(), area.get(), used * sizeof(int64_t));
    area = std::move(larger);
    capacity = next;
  }

  IdArray finish(int64_t size) {
    hint = size + size / 8;
    capacity = 0;
    return {std::move(area), size};
  }
};

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
  std::vector<Scratch> scratch;  // per thread

  uint32_t* map() const { return reinterpret_cast<uint32_t*>(map_area.get()); }
};

namespace {

// Gives the neighbours their places in the batch, new nodes the next ones; no branch depends on
// the data. Returns the number of nodes afterwards; node[] needs one place more than that.
template <class Index>
int64_t relabel(const Index* neighbor, int64_t count, uint32_t* map, uint64_t base, int64_t nodes,
                int64_t* node, int64_t* row) {
  uint64_t next = base + static_cast<uint64_t>(nodes);
  for (int64_t e = 0; e < count; ++e) {
    if (e + kDistance < count) __builtin_prefetch(map + neighbor[e + kDistance], 1);
    const Index v = neighbor[e];
    const uint64_t known = map[v];
    // Whether a neighbour is new is as good as random, so it is arithmetic, not a branch: the empty
    // statement keeps the compiler from making it one again.
    uint64_t fresh = known < base;
    asm("" : "+r"(fresh));
    const uint64_t label = known + ((next - known) & (0 - fresh));
    map[v] = static_cast<uint32_t>(label);
    node[next - base] = v;
    next += fresh;
    row[e] = static_cast<int64_t>(label - base);
  }
  return static_cast<int64_t>(next - base);
}

}  // namespace

Sampler::Sampler(CscGraph graph, int threads, Isa isa)
    : graph_(graph), isa_(isa), threads_(threads), pool_(BufferPool::create(kRetain)) {
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
            stream_key(request.seed, request.epoch, request.group, number, 0),
            request.fanouts[number],
            request.replace,
            begin,
            context.node.data() + begin,
            context.first.data(),
            context.degree.data()};
    const int64_t count = measure(hop, frontier, chunks);
    context.node.reserve(pool, nodes, nodes + std::min(count, graph.num_nodes) + 1);
    hop.frontier = context.node.data() + begin;
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
    batch = BatchRun<int64_t, Context>{graph_,   request, choose_kernels<int64_t>(isa_),
                                       threads_, *pool_,  *context}
                .run();
  } else {
    batch = BatchRun<int32_t, Context>{graph_,   request, choose_kernels<int32_t>(isa_),
                                       threads_, *pool_,  *context}
                .run();
  }
  give_back(std::move(context));
  return batch;
}

}  // namespace gnnsys
