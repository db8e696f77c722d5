#include "gnnsys/graph/rmat.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <ranges>
#include <stdexcept>
#include <string>

#include "gnnsys/errors.hpp"
#include "gnnsys/philox.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kGrain = 1 << 14;  // edges that a thread draws at a time
constexpr int64_t kMaxIds = int64_t{1} << 62;
constexpr uint32_t kThresholdBits = 24;
constexpr uint32_t kRestMask = (1u << kThresholdBits) - 1;

// Newton's iteration doubles the bits that are right: 3 at first, as x * x = 1 modulo 8 for odd x.
uint64_t invert_odd(uint64_t x) {
  uint64_t inverse = x;
  for (int right = 3; right < 64; right *= 2) inverse *= 2 - x * inverse;
  return inverse;
}

// A pseudorandom bijection of [0, n), computed in both directions without a table.
//
// One round multiplies by an odd number, adds, and xors the upper half of the bits into the lower:
// the steps of SplitMix64's finalizer on as many bits as n - 1 has. A result from n on is mapped
// again until it lies below (cycle walking: Black, Rogaway, "Ciphers with arbitrary finite
// domains", CT-RSA 2002), less than once on average.
class IdPermutation {
 public:
  // 1 <= n <= 2**62.
  IdPermutation(uint64_t key, int64_t n) : size_(static_cast<uint64_t>(n)) {
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

  // id < n.
  uint64_t forward(uint64_t id) const {
    do {
      for (const Round& round : rounds_) {
        id = (id * round.factor + round.term) & mask_;
        id ^= id >> shift_;
      }
    } while (id >= size_);
    return id;
  }

  uint64_t backward(uint64_t id) const {
    do {
      for (const Round& round : std::views::reverse(rounds_)) {
        id ^= id >> shift_;  // its own inverse, as shift_ is at least half of the bits
        id = ((id - round.term) * round.inverse) & mask_;
      }
    } while (id >= size_);
    return id;
  }

 private:
  struct Round {
    uint64_t factor, inverse, term;  // factor * inverse = 1 modulo 2**64
  };
  uint64_t size_, mask_;
  int shift_;
  std::array<Round, 6> rounds_;  // with fewer, the steps between neighbours show a pattern
};

struct Rmat {
  uint64_t key;  // of the edges' random words
  int scale;
  const uint32_t* alias;
  IdPermutation ids;
};

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

template <class Index>
void draw_rmat_edges(uint64_t edge_key, uint64_t id_key, int scale, std::span<const uint32_t> alias,
                     int64_t first, std::span<Index> source, std::span<Index> target,
                     const ThreadPool& threads) {
  const int most = sizeof(Index) == 4 ? std::numeric_limits<int32_t>::digits : kRmatMaxScale;
  if (scale < 1 || scale > most) {
    throw std::invalid_argument("draw_rmat_edges: scale " + std::to_string(scale) +
                                " is outside [1, " + std::to_string(most) + "] for ids of " +
                                std::to_string(8 * sizeof(Index)) + " bits");
  }
  if (alias.size() != kRmatOutcomes) {
    throw std::invalid_argument("draw_rmat_edges: alias has " + std::to_string(alias.size()) +
                                " entries, not " + std::to_string(kRmatOutcomes));
  }
  require(source.size() == target.size(), "draw_rmat_edges: arrays of different lengths");
  const auto count = static_cast<int64_t>(source.size());
  if (first < 0 || first > std::numeric_limits<int64_t>::max() - count) {
    throw std::invalid_argument("draw_rmat_edges: first edge " + std::to_string(first) +
                                " is negative or too great");
  }
  const Rmat rmat{edge_key, scale, alias.data(), IdPermutation(id_key, int64_t{1} << scale)};
  parallel_for(threads, count, kGrain, [&](long begin, long end) {
    draw_range(rmat, first + begin, end - begin, source.data() + begin, target.data() + begin);
  });
}

void permute_ids(uint64_t key, int64_t num_ids, bool inverse, std::span<int64_t> ids) {
  if (num_ids < 1 || num_ids > kMaxIds) {
    throw std::invalid_argument("permute_ids: num_ids " + std::to_string(num_ids) +
                                " is outside [1, 2**62]");
  }
  const IdPermutation permutation(key, num_ids);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto id = static_cast<uint64_t>(ids[i]);
    if (id >= static_cast<uint64_t>(num_ids)) {
      throw std::out_of_range("permute_ids: id " + std::to_string(ids[i]) + " at position " +
                              std::to_string(i) + " is outside [0, " + std::to_string(num_ids) +
                              ")");
    }
    ids[i] = static_cast<int64_t>(inverse ? permutation.backward(id) : permutation.forward(id));
  }
}

#define GNNSYS_INSTANTIATE(Index)                                                          \
  template void draw_rmat_edges<Index>(uint64_t, uint64_t, int, std::span<const uint32_t>, \
                                       int64_t, std::span<Index>, std::span<Index>,        \
                                       const ThreadPool&);
GNNSYS_INSTANTIATE(int32_t)
GNNSYS_INSTANTIATE(int64_t)
#undef GNNSYS_INSTANTIATE

}  // namespace gnnsys
