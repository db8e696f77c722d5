#pragma once

#include <array>
#include <cstdint>

#include "gnnsys/philox.hpp"
#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// What generated graphs are made of: edges of R-MAT and random ids, each a pure function of a key
// and a number. tests/unit/test_rmat.py has the reference; a change of any value changes every
// graph that was generated before.

// A pseudorandom bijection of [0, n), computed in both directions without a table.
//
// One round multiplies by an odd number, adds, and xors the upper half of the bits into the lower:
// the steps of SplitMix64's finalizer on as many bits as n - 1 has. A result from n on is mapped
// again until it lies below (cycle walking: Black, Rogaway, "Ciphers with arbitrary finite
// domains", CT-RSA 2002), less than once on average.
class IdPermutation {
 public:
  // 1 <= n <= 2**62.
  IdPermutation(uint64_t key, int64_t n);

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
      for (auto round = rounds_.rbegin(); round != rounds_.rend(); ++round) {
        id ^= id >> shift_;  // its own inverse, as shift_ is at least half of the bits
        id = ((id - round->term) * round->inverse) & mask_;
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

// R-MAT draws kRmatLevels levels of the quadrant recursion at once, by the alias method, from one
// random word. Outcome k of a draw has the row bits k / 16 and the column bits k % 16.
inline constexpr int kRmatLevels = 4;
inline constexpr int kRmatOutcomes = 1 << 2 * kRmatLevels;
inline constexpr int kRmatMaxScale = 40;

struct Rmat {
  uint64_t key;           // of the edges' random words
  int scale;              // log2 of the nodes, 1 to kRmatMaxScale
  const uint32_t* alias;  // (kRmatOutcomes) threshold << 8 | other outcome
  IdPermutation ids;      // the ids that nodes get
};

// Draws the edges [first, first + count). Index is int32_t (scale < 32) or int64_t.
template <class Index>
void draw_rmat_edges(const Rmat& rmat, int64_t first, int64_t count, Index* source, Index* target,
                     ThreadPool& threads);

// Maps ids[0 … count) in place, backward if `inverse`. Returns -1, or the first position whose id
// is outside [0, n); the ids before it are then mapped.
int64_t permute_ids(const IdPermutation& permutation, int64_t n, bool inverse, int64_t count,
                    int64_t* ids);

}  // namespace gnnsys
