// The inner loops of uniform choices: each_isa.inl compiles them for each instruction set.

namespace GNNSYS_NAMESPACE {

GNNSYS_TARGET inline int64_t measure(const UniformHop& hop, int64_t begin, int64_t end) {
  const int64_t* const indptr = hop.relation->indptr;
  uint64_t total = 0;  // of a bad indptr, degrees and their sum may wrap around
  bool bad = false;
  for (int64_t i = begin; i < end; ++i) {
    // The frontier is followed by the nodes of later hops, or by slack: reading on is harmless.
    if (i + kDistance < end) __builtin_prefetch(indptr + hop.targets.node[i + kDistance]);
    const int64_t first = indptr[hop.targets.node[i]];
    const int64_t after = indptr[hop.targets.node[i] + 1];
    const auto degree =
        static_cast<int64_t>(static_cast<uint64_t>(after) - static_cast<uint64_t>(first));
    bad |= first < 0 || after < first || after > hop.relation->num_edges || degree > kMaxDegree;
    hop.first[i] = first;
    hop.degree[i] = static_cast<uint32_t>(degree);
    total += static_cast<uint64_t>(sampled_edges(degree, hop.targets.fanout, hop.targets.replace));
  }
  return bad ? -1 : static_cast<int64_t>(total);
}

GNNSYS_TARGET inline void pick(const UniformHop& hop, int64_t begin, int64_t end,
                               PickScratch& scratch, int64_t* edge, int64_t* col) {
  hop.pick(hop.targets, begin, end, scratch, edge);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t sampled =
        sampled_edges(hop.targets.degree[i], hop.targets.fanout, hop.targets.replace);
    std::fill_n(col, sampled, hop.first_local + i);
    col += sampled;
  }
}

// False when a neighbour lies outside the graph.
template <class Index>
GNNSYS_TARGET bool read(const UniformHop& hop, const int64_t* edge, int64_t count,
                        Index* neighbor) {
  const auto* const indices = static_cast<const Index*>(hop.relation->indices);
  const auto num_nodes = static_cast<uint64_t>(hop.num_sources);
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

}  // namespace GNNSYS_NAMESPACE
