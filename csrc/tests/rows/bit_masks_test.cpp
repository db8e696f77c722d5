#include "gnnsys/rows/bit_masks.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <type_traits>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

bool bit(const std::vector<uint8_t>& bits, int64_t i) { return bits[i / 8] >> (i % 8) & 1; }

template <class Value, class Bits>
void masks_are_those_of_comparisons(std::mt19937_64& random) {
  using Limits = std::numeric_limits<Value>;
  const Value odd[] = {0,
                       -Value{0},
                       Limits::infinity(),
                       -Limits::infinity(),
                       Limits::quiet_NaN(),
                       -Limits::quiet_NaN(),
                       Limits::denorm_min(),
                       -Limits::denorm_min()};
  const auto infinity = std::bit_cast<Bits>(Limits::infinity());
  for (const int64_t n : {0, 1, 7, 8, 9, 63, 64, 65, 1000, 70'001, 200'003}) {
    for (const int threads : {1, 3}) {
      const ThreadPool pool(threads);
      std::vector<Value> x(n), signs(n), noise(n);
      for (int64_t i = 0; i < n; ++i) {
        x[i] = random() % 4 ? static_cast<Value>(random() % 100) - 50 : odd[random() % 8];
        noise[i] = random() % 2 ? Value{1.25} : Value{0};
      }
      const auto at = [](std::vector<Value>& of) { return reinterpret_cast<uintptr_t>(of.data()); };
      std::vector<uint8_t> bits((n + 7) / 8, 0xff);
      for (const Sign counts : {Sign::positive, Sign::not_negative}) {
        pack_signs(sizeof(Value), infinity, counts, at(x), n, bits.data(), pool);
        unpack_bits(sizeof(Value), bits.data(), n, std::bit_cast<Bits>(Value{1}), at(signs), pool);
        for (int64_t i = 0; i < n; ++i) {
          const bool expected = counts == Sign::positive ? x[i] > 0 : !(x[i] <= 0);
          CHECK(bit(bits, i) == expected);
          CHECK(signs[i] == (expected ? 1 : 0));
        }
      }
      const std::optional<uint64_t> one =
          pack_two_values(sizeof(Value), at(noise), n, bits.data(), pool);
      CHECK(one.has_value());
      unpack_bits(sizeof(Value), bits.data(), n, *one, at(signs), pool);
      CHECK(signs == noise);
      if (n > 2) {
        noise[0] = 1.25;
        for (const int64_t place : {int64_t{1}, n / 2, n - 1}) {
          std::vector<Value> others(noise);
          others[place] = -Value{0};  // its pattern is not 0
          CHECK(!pack_two_values(sizeof(Value), at(others), n, bits.data(), pool).has_value());
        }
      }
      std::vector<Value> late(n);
      if (n) late[n - 1] = 3;
      const auto last = pack_two_values(sizeof(Value), at(late), n, bits.data(), pool);
      CHECK(last == std::bit_cast<Bits>(n ? Value{3} : Value{0}));
      unpack_bits(sizeof(Value), bits.data(), n, *last, at(signs), pool);
      CHECK(signs == late);
    }
  }
}

}  // namespace

void test_bit_masks() {
  std::mt19937_64 random(3);
  masks_are_those_of_comparisons<float, uint32_t>(random);
  masks_are_those_of_comparisons<double, uint64_t>(random);
}

}  // namespace gnnsys::test
