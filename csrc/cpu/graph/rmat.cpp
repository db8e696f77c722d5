#include "gnnsys/graph/rmat.hpp"

#include <bit>

namespace gnnsys {
namespace {

constexpr int64_t kGrain = 1 << 14;  // edges that a thread draws at a time
constexpr uint32_t kThresholdBits = 24;
constexpr uint32_t kRestMask = (1u << kThresholdBits) - 1;

// Newton's iteration doubles the bits that are right: 3 at first, as x * x = 1 modulo 8 for odd x.
uint64_t invert_odd(uint64_t x) {
  uint64_t inverse = x;
  for (int right = 3; right < 64; right *= 2) inverse *= 2 - x * inverse;
  return inverse;
}

// The upper eight bits of a word choose a column of the alias table, the others one of its two
// outcomes.
inline uint32_t draw_outcome(const uint32_t* alias, uint32_t word) {
  const uint32_t column = word >> kThresholdBits;
  const uint32_t entry = alias[column];
  return (word & kRestMask) < entry >> 8 ? column : entry & 0xFF;
}

template <class Index>
void draw_range(const Rmat& rmat, int64_t first, int64_t count, Index* source, Index* target) {
  const int words = (rmat.scale + kRmatLevels - 1) / kRmatLevels;
  // Levels are independent, so those drawn beyond the scale are dropped.
  const int surplus = words * kRmatLevels - rmat.scale;
  for (int64_t e = 0; e < count; ++e) {
    const auto edge = static_cast<uint64_t>(first + e);
    uint64_t row = 0, column = 0;
    for (int begin = 0; begin < words; begin += kDrawsPerBlock) {
      const PhiloxBlock block =
          draw_block(rmat.key, edge, 0, static_cast<uint32_t>(begin / kDrawsPerBlock));
      const int end = words - begin < kDrawsPerBlock ? words - begin : kDrawsPerBlock;
      for (int i = 0; i < end; ++i) {
        const uint32_t outcome = draw_outcome(rmat.alias, block[i]);
        row = row << kRmatLevels | outcome >> kRmatLevels;
        column = column << kRmatLevels | (outcome & ((1u << kRmatLevels) - 1));
      }
    }
    source[e] = static_cast<Index>(rmat.ids.forward(row >> surplus));
    target[e] = static_cast<Index>(rmat.ids.forward(column >> surplus));
  }
}

}  // namespace

IdPermutation::IdPermutation(uint64_t key, int64_t n) : size_(static_cast<uint64_t>(n)) {
  const int bits = n > 2 ? static_cast<int>(std::bit_width(size_ - 1)) : 1;
  mask_ = (uint64_t{1} << bits) - 1;
  shift_ = (bits + 1) / 2;
  uint64_t number = 0;
  for (Round& round : rounds_) {
    round.factor = mix64(key + ++number) | 1;
    round.inverse = invert_odd(round.factor);
    round.term = mix64(key + ++number);
  }
}

template <class Index>
void draw_rmat_edges(const Rmat& rmat, int64_t first, int64_t count, Index* source, Index* target,
                     ThreadPool& threads) {
  parallel_for(threads, count, kGrain, [&](long begin, long end) {
    draw_range(rmat, first + begin, end - begin, source + begin, target + begin);
  });
}

int64_t permute_ids(const IdPermutation& permutation, int64_t n, bool inverse, int64_t count,
                    int64_t* ids) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= n) return i;
    const auto id = static_cast<uint64_t>(ids[i]);
    ids[i] = static_cast<int64_t>(inverse ? permutation.backward(id) : permutation.forward(id));
  }
  return -1;
}

template void draw_rmat_edges<int32_t>(const Rmat&, int64_t, int64_t, int32_t*, int32_t*,
                                       ThreadPool&);
template void draw_rmat_edges<int64_t>(const Rmat&, int64_t, int64_t, int64_t*, int64_t*,
                                       ThreadPool&);

}  // namespace gnnsys
