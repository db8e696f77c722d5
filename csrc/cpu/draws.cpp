#include "draws.hpp"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gnnsys {
namespace {

// The numbered draws of one node; `words` holds the first try of each.
struct Draws {
  uint64_t key;
  uint64_t node;
  uint32_t position;
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
      const PhiloxBlock block = draw_block(key, node, position, draw / kDrawsPerBlock + step);
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
                                   std::vector<uint64_t>& set, int64_t* edge) {
  std::size_t slots = 8;
  while (slots < std::size_t{2} * k) slots *= 2;
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

// Words: one counter word of several nodes, each in the low half of a 64-bit lane. multiply() takes
// low halves.
namespace generic {
using Words [[gnu::vector_size(16)]] = uint64_t;
#if defined(__x86_64__)
[[gnu::target("sse2"), gnu::always_inline]] inline Words multiply(Words a, Words b) {
  return reinterpret_cast<Words>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
}  // namespace generic

namespace avx2 {
using Words [[gnu::vector_size(32)]] = uint64_t;
[[gnu::target("avx2"), gnu::always_inline]] inline Words multiply(Words a, Words b) {
  return reinterpret_cast<Words>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
}  // namespace avx2

namespace avx512 {
using Words [[gnu::vector_size(64)]] = uint64_t;
[[gnu::target("avx512f"), gnu::always_inline]] inline Words multiply(Words a, Words b) {
  return reinterpret_cast<Words>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
}  // namespace avx512
#else
inline Words multiply(Words a, Words b) { return (a & 0xffffffff) * (b & 0xffffffff); }
}  // namespace generic
#endif

#define GNNSYS_KERNEL "draws_kernel.inl"
#include "each_isa.inl"

}  // namespace

PhiloxNodes choose_philox_nodes(Isa isa) {
  (void)isa;
  return GNNSYS_CHOOSE(isa, philox_nodes);
}

PickPositions choose_pick_positions(Isa isa) {
  (void)isa;
  return GNNSYS_CHOOSE(isa, pick_positions);
}

}  // namespace gnnsys
