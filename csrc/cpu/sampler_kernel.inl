// The sampler's inner loops, compiled once for each instruction set: sampler.cpp includes this with
// GNNSYS_NAMESPACE and GNNSYS_TARGET set, and with philox_nodes() defined in that namespace.

namespace GNNSYS_NAMESPACE {

// Reads the extent of each frontier node in [begin, end); returns how many edges they will sample,
// or -1 when indptr is not ascending within [0, num_edges].
GNNSYS_TARGET inline int64_t measure(const Hop& hop, int64_t begin, int64_t end) {
  const int64_t* const indptr = hop.graph->indptr;
  int64_t total = 0;
  bool bad = false;
  for (int64_t i = begin; i < end; ++i) {
    // The frontier is followed by the nodes of later hops, or by slack: reading on is harmless.
    if (i + kDistance < end) __builtin_prefetch(indptr + hop.frontier[i + kDistance]);
    const int64_t first = indptr[hop.frontier[i]];
    const int64_t degree = indptr[hop.frontier[i] + 1] - first;
    bad |= first < 0 || degree < 0 || first + degree > hop.graph->num_edges || degree > kMaxDegree;
    hop.first[i] = first;
    hop.degree[i] = static_cast<uint32_t>(degree);
    total += sampled_edges(degree, hop.fanout, hop.replace);
  }
  return bad ? -1 : total;
}

// k of n without replacement for n <= 64 * Words: a set of bits is also a sorted list.
template <int Words>
GNNSYS_TARGET inline void pick_by_bits(const Draws& draws, uint32_t n, uint32_t k, int64_t first,
                                       int64_t* edge) {
  uint64_t chosen[Words] = {};
  for (uint32_t i = 0; i < k; ++i) {
    const uint32_t last = n - k + i;
    uint32_t pick = draws.bounded(i, last + 1);
    pick = (chosen[pick / 64] >> (pick % 64) & 1) ? last : pick;
    chosen[pick / 64] |= uint64_t{1} << (pick % 64);
  }
  for (int w = 0; w < Words; ++w) {
    for (uint64_t bits = chosen[w]; bits; bits &= bits - 1) {
      *edge++ = first + 64 * w + __builtin_ctzll(bits);
    }
  }
}

// k of n without replacement for k <= Lanes and n >> k: draws rarely meet, so all are made at once
// and each goes to the place that counting the smaller ones gives it. False when two did meet.
template <int Lanes>
GNNSYS_TARGET inline bool pick_by_rank(const Draws& draws, uint32_t n, uint32_t k, int64_t first,
                                       int64_t* edge) {
  uint32_t pick[Lanes], rank[Lanes], twins[Lanes];
  uint32_t rejected = 0;
  for (uint32_t i = 0; i < Lanes; ++i) {
    const uint64_t bound = n - k + i + 1;
    const uint64_t product = draws.words[i] * bound;  // lanes from k on hold words of no meaning
    pick[i] = static_cast<uint32_t>(product >> 32);
    rejected |= (static_cast<uint32_t>(product) < bound) & (i < k);
    rank[i] = 0;
    twins[i] = 0;
  }
  if (__builtin_expect(rejected != 0, 0)) return false;
  for (uint32_t j = 0; j < k; ++j) {
    for (uint32_t i = 0; i < Lanes; ++i) {
      rank[i] += pick[j] < pick[i];
      twins[i] += pick[j] == pick[i];
    }
  }
  uint32_t met = 0;
  for (uint32_t i = 0; i < Lanes; ++i) met |= (twins[i] > 1) & (i < k);
  if (__builtin_expect(met != 0, 0)) return false;
  for (uint32_t i = 0; i < k; ++i) edge[rank[i]] = first + pick[i];
  return true;
}

GNNSYS_TARGET inline void pick(const Draws& draws, uint32_t n, uint32_t k, bool replace,
                               int64_t first, int64_t* edge) {
  if (replace) return pick_with_replacement(draws, n, k, first, edge);
  if (n <= 64) return pick_by_bits<1>(draws, n, k, first, edge);
  if (n <= 512) return pick_by_bits<8>(draws, n, k, first, edge);
  if (k <= 8 && pick_by_rank<8>(draws, n, k, first, edge)) return;
  if (k > 8 && k <= 16 && pick_by_rank<16>(draws, n, k, first, edge)) return;
  if (k > 16 && k <= 32 && pick_by_rank<32>(draws, n, k, first, edge)) return;
  pick_by_set(draws, n, k, first, edge);
}

// Positions of the sampled edges of the frontier nodes in [begin, end), ascending for each node.
GNNSYS_TARGET inline void pick_positions(const Hop& hop, int64_t begin, int64_t end,
                                         Scratch& scratch, int64_t* edge, int64_t* col) {
  const bool draws_wanted = hop.fanout > 0;
  const uint32_t blocks = draws_wanted ? (hop.fanout + kDrawsPerBlock - 1) / kDrawsPerBlock : 0;
  scratch.reserve(end - begin, blocks);
  int64_t drawing = 0;
  for (int64_t i = begin; i < end; ++i) {
    scratch.nodes[drawing] = hop.frontier[i];
    drawing += draws_wanted && needs_draws(hop.degree[i], hop.fanout, hop.replace);
  }
  philox_nodes(hop.key, scratch.nodes.data(), drawing, blocks, scratch.words.data());

  const uint32_t* words = scratch.words.data();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = hop.first[i];
    const uint32_t degree = hop.degree[i];
    const int64_t count = sampled_edges(degree, hop.fanout, hop.replace);
    if (draws_wanted && needs_draws(degree, hop.fanout, hop.replace)) {
      const Draws draws{hop.key, static_cast<uint64_t>(hop.frontier[i]), words};
      pick(draws, degree, static_cast<uint32_t>(count), hop.replace, first, edge);
      words += blocks * kDrawsPerBlock;
    } else {
      for (int64_t e = 0; e < count; ++e) edge[e] = first + e;
    }
    for (int64_t e = 0; e < count; ++e) col[e] = hop.first_local + i;
    edge += count;
    col += count;
  }
}

// False when a neighbour lies outside the graph.
template <class Index>
GNNSYS_TARGET inline bool read_neighbors(const Index* indices, uint64_t num_nodes,
                                         const int64_t* edge, int64_t count, Index* neighbor) {
  bool bad = false;
  const int64_t led = count - kDistance;
  int64_t e = 0;
  for (; e < led; ++e) {
    __builtin_prefetch(indices + edge[e + kDistance]);
    neighbor[e] = indices[edge[e]];
    bad |= static_cast<uint64_t>(neighbor[e]) >= num_nodes;
  }
  for (; e < count; ++e) {
    neighbor[e] = indices[edge[e]];
    bad |= static_cast<uint64_t>(neighbor[e]) >= num_nodes;
  }
  return !bad;
}

template <class Index>
GNNSYS_TARGET bool expand(const Hop& hop, int64_t begin, int64_t end, int64_t count,
                          Scratch& scratch, int64_t* edge, int64_t* col, Index* neighbor) {
  pick_positions(hop, begin, end, scratch, edge, col);
  return read_neighbors(static_cast<const Index*>(hop.graph->indices),
                        static_cast<uint64_t>(hop.graph->num_nodes), edge, count, neighbor);
}

}  // namespace GNNSYS_NAMESPACE
