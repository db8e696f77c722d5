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

namespace generic {
void philox_nodes(uint64_t key, const int64_t* nodes, const uint32_t* positions, int64_t count,
                  uint32_t blocks, uint32_t* words) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t position = positions ? positions[i] : 0;
    for (uint32_t b = 0; b < blocks; ++b, words += kDrawsPerBlock) {
      const PhiloxBlock block = draw_block(key, static_cast<uint64_t>(nodes[i]), position, b);
      std::memcpy(words, block.data(), sizeof block);
    }
  }
}
}  // namespace generic

#if defined(__x86_64__)

// A vector holds one counter word of several nodes, each in the low half of a 64-bit lane: what the
// 32-bit multiplication reads. High halves carry rubbish until the words are packed.
namespace avx2 {
[[gnu::target("avx2")]] void philox_nodes(uint64_t key, const int64_t* nodes,
                                          const uint32_t* positions, int64_t count, uint32_t blocks,
                                          uint32_t* words) {
  const __m256i m0 = _mm256_set1_epi64x(kPhiloxM0), m1 = _mm256_set1_epi64x(kPhiloxM1);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const __m256i node = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(nodes + i));
    const __m256i position = positions ? _mm256_cvtepu32_epi64(_mm_loadu_si128(
                                             reinterpret_cast<const __m128i*>(positions + i)))
                                       : _mm256_setzero_si256();
    for (uint32_t b = 0; b < blocks; ++b) {
      __m256i x0 = node, x1 = _mm256_srli_epi64(node, 32);
      __m256i x2 = position, x3 = _mm256_set1_epi64x(b);
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
  generic::philox_nodes(key, nodes + i, positions ? positions + i : nullptr, count - i, blocks,
                        words + i * blocks * kDrawsPerBlock);
}
}  // namespace avx2

#define GNNSYS_AVX512 "avx512f,avx512dq,avx512bw,avx512vl,bmi,bmi2,prefer-vector-width=512"
namespace avx512 {
[[gnu::target(GNNSYS_AVX512)]] void philox_nodes(uint64_t key, const int64_t* nodes,
                                                 const uint32_t* positions, int64_t count,
                                                 uint32_t blocks, uint32_t* words) {
  const __m512i m0 = _mm512_set1_epi64(kPhiloxM0), m1 = _mm512_set1_epi64(kPhiloxM1);
  constexpr int kXor3 = 0x96;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m512i node = _mm512_loadu_si512(nodes + i);
    const __m512i position = positions ? _mm512_cvtepu32_epi64(_mm256_loadu_si256(
                                             reinterpret_cast<const __m256i*>(positions + i)))
                                       : _mm512_setzero_si512();
    for (uint32_t b = 0; b < blocks; ++b) {
      __m512i x0 = node, x1 = _mm512_srli_epi64(node, 32);
      __m512i x2 = position, x3 = _mm512_set1_epi64(b);
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
  generic::philox_nodes(key, nodes + i, positions ? positions + i : nullptr, count - i, blocks,
                        words + i * blocks * kDrawsPerBlock);
}
}  // namespace avx512

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
