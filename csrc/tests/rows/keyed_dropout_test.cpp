#include "gnnsys/rows/keyed_dropout.hpp"

#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "gnnsys/philox.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

// Word by word, for shapes around those of a block and of what is drawn at a time.
template <class Value>
void values_are_kept_by_their_words(std::mt19937_64& random) {
  for (const int64_t width : {0, 1, 4, 7, 64, 8200}) {
    for (const int64_t rows : {0, 1, 9, 300}) {
      if (rows * width > 100'000) continue;
      const uint64_t key = random();
      const auto least = static_cast<uint32_t>(random());
      std::vector<int64_t> vertices(rows);
      for (int64_t& vertex : vertices) vertex = static_cast<int64_t>(random() >> 1);
      std::vector<Value> x(rows * width), expected(rows * width);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = 0; c < width; ++c) {
          const PhiloxBlock block = draw_block(key, static_cast<uint64_t>(vertices[i]), 0,
                                               static_cast<uint32_t>(c / kDrawsPerBlock));
          Value& value = x[i * width + c];
          value = static_cast<Value>(random() % 1000) - 500;
          expected[i * width + c] = block[c % kDrawsPerBlock] >= least ? value * 2 : Value{0};
        }
      }
      for (const Isa isa : supported_isas()) {
        std::vector<Value> out(x);  // in place
        keyed_dropout<Value>({key, least}, vertices.data(), rows, width, 2, out.data(), out.data(),
                             isa);
        CHECK(out == expected);
      }
    }
  }
}

}  // namespace

void test_keyed_dropout() {
  std::mt19937_64 random(9);
  values_are_kept_by_their_words<float>(random);
  values_are_kept_by_their_words<double>(random);
}

}  // namespace gnnsys::test
