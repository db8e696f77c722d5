#include "gnnsys/rows/bit_masks.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace gnnsys {
namespace {

constexpr int64_t kBlock = 64;  // elements whose flags, a byte each, are in registers
constexpr int64_t kGrain = int64_t{1} << 16;

// Returns with(Bits) for the unsigned type of so many bytes.
template <class With>
auto with_bits(int bytes, const With& with) {
  switch (bytes) {
    case 1:
      return with(uint8_t{});
    case 2:
      return with(uint16_t{});
    case 4:
      return with(uint32_t{});
    case 8:
      return with(uint64_t{});
    default:
      throw std::invalid_argument("bit masks: elements of " + std::to_string(bytes) + " bytes");
  }
}

// Eight bytes, each 0 or 1, as the bits of one.
inline uint8_t gather_flags(const uint8_t* flags) {
  uint64_t eight;
  std::memcpy(&eight, flags, sizeof eight);
  return static_cast<uint8_t>((eight * 0x0102040810204080) >> 56);
}

inline void scatter_flags(uint8_t bits, uint8_t* flags) {
  const uint64_t each = (bits * uint64_t{0x0101010101010101}) & 0x8040201008040201;
  const uint64_t eight = ((each + 0x7f7f7f7f7f7f7f7f) >> 7) & 0x0101010101010101;
  std::memcpy(flags, &eight, sizeof eight);
}

static_assert(std::endian::native == std::endian::little);

// Calls with(i) for i < count <= kBlock; a whole block's loop has a known length.
template <class With>
inline void each_of_block(int64_t count, const With& with) {
  if (count == kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) with(i);
  } else {
    for (int64_t i = 0; i < count; ++i) with(i);
  }
}

template <class Bits, class Flag>
inline void pack_block(const Bits* x, int64_t count, uint8_t* bits, const Flag& flag) {
  uint8_t flags[kBlock];
  if (count < kBlock) std::memset(flags, 0, sizeof flags);
  each_of_block(count, [&](int64_t i) { flags[i] = flag(x[i]); });
  for (int64_t i = 0; i < count; i += 8) bits[i / 8] = gather_flags(flags + i);
}

template <class Bits, class Flag>
void pack(const Bits* data, int64_t n, uint8_t* bits, const ThreadPool& pool, const Flag& flag) {
  parallel_for(pool, n, kGrain, [&](long begin, long end) {
    for (int64_t i = begin; i < end; i += kBlock) {
      pack_block(data + i, std::min<int64_t>(kBlock, end - i), bits + i / 8, flag);
    }
  });
}

// What is not 0 first, or 0.
template <class Bits>
Bits first_value(const Bits* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    Bits any = 0;
    each_of_block(count, [&](int64_t k) { any |= x[i + k]; });
    if (any) return *std::find_if(x + i, x + i + count, [](Bits b) { return b != 0; });
  }
  return 0;
}

// Whether all are 0 or `one`. Without branches: in noise they would be mispredicted half the time.
template <class Bits>
inline bool has_only(const Bits* x, int64_t count, Bits one) {
  Bits others = 0;
  each_of_block(count, [&](int64_t i) {
    others |= static_cast<Bits>(Bits(-Bits(x[i] != 0)) & Bits(x[i] ^ one));
  });
  return others == 0;
}

template <class Bits>
void unpack(const uint8_t* bits, int64_t n, Bits one, Bits* out, const ThreadPool& pool) {
  parallel_for(pool, n, kGrain, [&](long begin, long end) {
    uint8_t flags[kBlock];
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t count = std::min<int64_t>(kBlock, end - block);
      for (int64_t i = 0; i < count; i += 8) scatter_flags(bits[(block + i) / 8], flags + i);
      Bits* to = out + block;
      each_of_block(count, [&](int64_t i) { to[i] = static_cast<Bits>(Bits(-flags[i]) & one); });
    }
  });
}

}  // namespace

void pack_signs(int bytes, uint64_t infinity, Sign counts, uintptr_t data, int64_t n, uint8_t* bits,
                const ThreadPool& pool) {
  with_bits(bytes, [&]<class Bits>(Bits) {
    // Patterns of numbers without a sign are in the order of the numbers.
    using Signed = std::make_signed_t<Bits>;
    const auto most = static_cast<Signed>(infinity);
    const auto* x = reinterpret_cast<const Signed*>(data);
    constexpr Signed kNoSign = std::numeric_limits<Signed>::max();
    if (counts == Sign::positive) {
      pack(x, n, bits, pool, [=](Signed b) { return uint8_t((b > 0) & (b <= most)); });
    } else {
      pack(x, n, bits, pool,
           [=](Signed b) { return uint8_t((b > 0) | (Signed(b & kNoSign) > most)); });
    }
  });
}

std::optional<uint64_t> pack_two_values(int bytes, uintptr_t data, int64_t n, uint8_t* bits,
                                        const ThreadPool& pool) {
  return with_bits(bytes, [&]<class Bits>(Bits) -> std::optional<uint64_t> {
    const auto* x = reinterpret_cast<const Bits*>(data);
    const Bits one = first_value(x, n);
    std::atomic<bool> others{false};
    parallel_for(pool, n, kGrain, [&](long begin, long end) {
      for (int64_t i = begin; i < end && !others.load(std::memory_order_relaxed); i += kBlock) {
        const int64_t count = std::min<int64_t>(kBlock, end - i);
        if (!has_only(x + i, count, one)) others.store(true, std::memory_order_relaxed);
        pack_block(x + i, count, bits + i / 8, [](Bits b) { return uint8_t(b != 0); });
      }
    });
    if (others.load()) return std::nullopt;
    return one;
  });
}

void unpack_bits(int bytes, const uint8_t* bits, int64_t n, uint64_t one, uintptr_t out,
                 const ThreadPool& pool) {
  with_bits(bytes, [&]<class Bits>(Bits) {
    unpack(bits, n, static_cast<Bits>(one), reinterpret_cast<Bits*>(out), pool);
  });
}

}  // namespace gnnsys
