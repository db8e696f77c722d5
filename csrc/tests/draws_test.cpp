// Philox4x32-10 against the answers published with Random123, and the vectors' words against it.
#include "draws.hpp"

#include <algorithm>
#include <random>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

void philox_gives_the_published_answers() {
  constexpr uint32_t kOnes = 0xFFFFFFFF;
  CHECK((philox4x32({0, 0, 0, 0}, 0, 0) ==
         PhiloxBlock{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}));
  CHECK((philox4x32({kOnes, kOnes, kOnes, kOnes}, kOnes, kOnes) ==
         PhiloxBlock{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}));
  CHECK((philox4x32({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, 0xA4093822, 0x299F31D0) ==
         PhiloxBlock{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}));
}

// For as many nodes as leave every part of a vector over.
void vectors_draw_the_same_words() {
  std::mt19937_64 random(5);
  for (const Isa isa : supported_isas()) {
    const PhiloxNodes draw = choose_philox_nodes(isa);
    for (int64_t count = 0; count < 20; ++count) {
      for (const uint32_t blocks : {1u, 2u, 5u}) {
        const uint64_t key = random();
        std::vector<int64_t> nodes(count);
        std::vector<uint32_t> positions(count), words(count * blocks * kDrawsPerBlock);
        for (int64_t& node : nodes) node = static_cast<int64_t>(random());
        for (uint32_t& position : positions) position = static_cast<uint32_t>(random());
        for (const bool placed : {false, true}) {
          draw(key, nodes.data(), placed ? positions.data() : nullptr, count, blocks, words.data());
          for (int64_t i = 0; i < count; ++i) {
            for (uint32_t b = 0; b < blocks; ++b) {
              const PhiloxBlock block =
                  draw_block(key, static_cast<uint64_t>(nodes[i]), placed ? positions[i] : 0, b);
              CHECK(std::equal(block.begin(), block.end(),
                               words.data() + (i * blocks + b) * kDrawsPerBlock));
            }
          }
        }
      }
    }
  }
}

}  // namespace

void test_draws() {
  philox_gives_the_published_answers();
  vectors_draw_the_same_words();
}

}  // namespace gnnsys::test
