// Random words and uniform picks: each_isa.inl compiles them for each instruction set.

namespace GNNSYS_NAMESPACE {

// High halves of lanes carry rubbish until the words are put together.
GNNSYS_TARGET void philox_nodes(uint64_t key, const int64_t* nodes, const uint32_t* positions,
                                int64_t count, uint32_t blocks, uint32_t* words) {
  constexpr int64_t kLanes = sizeof(Words) / sizeof(uint64_t);
  const Words m0 = Words{} + kPhiloxM0, m1 = Words{} + kPhiloxM1, low = Words{} + 0xffffffff;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Words node, position{};
    std::memcpy(&node, nodes + i, sizeof node);
    for (int64_t lane = 0; positions && lane < kLanes; ++lane) position[lane] = positions[i + lane];
    for (uint32_t b = 0; b < blocks; ++b) {
      Words x0 = node, x1 = node >> 32, x2 = position, x3 = Words{} + b;
      uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
      for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        const Words p0 = multiply(m0, x0), p1 = multiply(m1, x2);
        x0 = (p1 >> 32) ^ x1 ^ (Words{} + k0);
        x2 = (p0 >> 32) ^ x3 ^ (Words{} + k1);
        x1 = p1;
        x3 = p0;
      }
      const Words halves[2] = {(x0 & low) | x1 << 32, (x2 & low) | x3 << 32};
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const uint64_t block[2] = {halves[0][lane], halves[1][lane]};
        std::memcpy(words + ((i + lane) * blocks + b) * kDrawsPerBlock, block, sizeof block);
      }
    }
  }
  for (uint32_t* to = words + i * blocks * kDrawsPerBlock; i < count; ++i) {
    for (uint32_t b = 0; b < blocks; ++b, to += kDrawsPerBlock) {
      const auto node = static_cast<uint64_t>(nodes[i]);
      const PhiloxBlock block = draw_block(key, node, positions ? positions[i] : 0, b);
      std::memcpy(to, block.data(), sizeof block);
    }
  }
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
                               int64_t first, std::vector<uint64_t>& set, int64_t* edge) {
  if (replace) return pick_with_replacement(draws, n, k, first, edge);
  if (n <= 64) return pick_by_bits<1>(draws, n, k, first, edge);
  if (n <= 512) return pick_by_bits<8>(draws, n, k, first, edge);
  if (k <= 8 && pick_by_rank<8>(draws, n, k, first, edge)) return;
  if (k > 8 && k <= 16 && pick_by_rank<16>(draws, n, k, first, edge)) return;
  if (k > 16 && k <= 32 && pick_by_rank<32>(draws, n, k, first, edge)) return;
  pick_by_set(draws, n, k, first, set, edge);
}

GNNSYS_TARGET void pick_positions(const Targets& targets, int64_t begin, int64_t end,
                                  PickScratch& scratch, int64_t* edge) {
  const int64_t fanout = targets.fanout;
  const uint32_t blocks = fanout > 0 ? (fanout + kDrawsPerBlock - 1) / kDrawsPerBlock : 0;
  scratch.reserve_nodes(end - begin);
  int64_t drawing = 0;
  for (int64_t i = begin; i < end; ++i) {
    scratch.nodes[drawing] = targets.node[i];
    if (targets.position) scratch.positions[drawing] = targets.position[i];
    drawing += fanout > 0 && needs_draws(targets.degree[i], fanout, targets.replace);
  }
  scratch.reserve_words(drawing, blocks);
  philox_nodes(targets.key, scratch.nodes.data(),
               targets.position ? scratch.positions.data() : nullptr, drawing, blocks,
               scratch.words.data());

  const uint32_t* words = scratch.words.data();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = targets.first[i];
    const uint32_t degree = targets.degree[i];
    const int64_t count = sampled_edges(degree, fanout, targets.replace);
    if (fanout > 0 && needs_draws(degree, fanout, targets.replace)) {
      const Draws draws{targets.key, static_cast<uint64_t>(targets.node[i]),
                        targets.position ? targets.position[i] : 0, words};
      pick(draws, degree, static_cast<uint32_t>(count), targets.replace, first, scratch.set, edge);
      words += blocks * kDrawsPerBlock;
    } else {
      for (int64_t e = 0; e < count; ++e) edge[e] = first + e;
    }
    edge += count;
  }
}

}  // namespace GNNSYS_NAMESPACE
