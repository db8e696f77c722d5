// Edges by type and their pairs, against a stable sort and a map.
#include "gnnsys/graph/typed_pairs.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {

void test_typed_pairs() {
  constexpr int64_t kEdges = 3000, kSources = 70, kTargets = 40, kTypes = 9;
  std::mt19937_64 random(23);
  std::vector<int64_t> source(kEdges), target(kEdges), type(kEdges), order(kEdges);
  for (int64_t e = 0; e < kEdges; ++e) {
    source[e] = static_cast<int64_t>(random() % kSources);
    target[e] = static_cast<int64_t>(random() % kTargets);
    type[e] = static_cast<int64_t>(random() % (kTypes - 1));  // the last one has none
  }
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int64_t e) { return type[e]; });

  std::vector<int64_t> ptr(kTypes + 1), sources(kEdges), targets(kEdges), numbers(kEdges);
  const auto sort = [&] {
    return sort_by_type(source, target, type, kSources, kTargets, ptr, sources, targets, numbers);
  };
  CHECK(sort() == false);
  CHECK(numbers == order);
  std::vector<int64_t> pair(kEdges), node(kEdges), pair_ptr(kTypes + 1);
  const int64_t pairs = number_pairs(sources, ptr, kSources, pair, node, pair_ptr);
  std::map<std::pair<int64_t, int64_t>, int64_t> expected;
  for (int64_t e = 0; e < kEdges; ++e) {
    CHECK(sources[e] == source[order[e]]);
    CHECK(targets[e] == target[order[e]]);
    CHECK(ptr[type[order[e]]] <= e && e < ptr[type[order[e]] + 1]);
    const auto count = static_cast<int64_t>(expected.size());
    const auto known = expected.emplace(std::pair(type[order[e]], sources[e]), count).first;
    CHECK(pair[e] == known->second);
    CHECK(node[pair[e]] == sources[e]);
  }
  CHECK(pairs == static_cast<int64_t>(expected.size()));
  for (const auto& [key, number] : expected) {
    CHECK(pair_ptr[key.first] <= number && number < pair_ptr[key.first + 1]);
  }
  CHECK(pair_ptr.back() == pairs);

  CHECK(message_of<std::out_of_range>([&] {
          number_pairs(sources, ptr, kSources / 2, pair, node, pair_ptr);
        }) == "number_pairs: a node is outside");
  for (auto& [ids, bad] : {std::pair(&type, kTypes), {&source, kSources}, {&target, int64_t{-1}}}) {
    const int64_t before = std::exchange(ids->back(), bad);
    CHECK(sort() == std::nullopt);
    ids->back() = before;
  }
  std::ranges::sort(type);
  CHECK(sort() == true);
  CHECK(sources == source && targets == target);
}

}  // namespace gnnsys::test
