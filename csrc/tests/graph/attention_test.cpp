#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "gnnsys/graph/additive_logits.hpp"
#include "gnnsys/graph/edge_softmax.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

template <class T>
uintptr_t address(const std::vector<T>& values) {
  return reinterpret_cast<uintptr_t>(values.data());
}

template <class Value>
const char* name_of() {
  return sizeof(Value) == 4 ? "float32" : "float64";
}

// Edges grouped by target, whose values lie elsewhere.
template <class Id>
struct Graph {
  std::vector<int64_t> indptr{0};
  std::vector<Id> source, order;

  Graph(std::mt19937_64& random, int64_t targets, int64_t sources) {
    for (int64_t t = 0; t < targets; ++t) {
      for (uint64_t count = t == 3 ? 500 : random() % 4; count > 0; --count) {
        source.push_back(static_cast<Id>(random() % static_cast<uint64_t>(sources)));
        order.push_back(static_cast<Id>(order.size()));
      }
      indptr.push_back(static_cast<int64_t>(source.size()));
    }
    std::shuffle(order.begin(), order.end(), random);
  }

  EdgeArrays arrays() const {
    return {address(indptr), static_cast<int64_t>(indptr.size()) - 1, address(source),
            address(order), sizeof(Id)};
  }
};

template <class Value>
std::vector<Value> draws(std::mt19937_64& random, int64_t count) {
  std::normal_distribution<double> draw;
  std::vector<Value> values(count);
  for (Value& value : values) value = static_cast<Value>(draw(random));
  return values;
}

// Target by target, in long double; every instruction set and number of threads gives the same
// bits.
template <class Value, class Id>
void shares_are_softmax(std::mt19937_64& random, int64_t heads) {
  constexpr int64_t kTargets = 40, kSources = 30;
  Graph<Id> graph(random, kTargets, kSources);
  const auto edges = static_cast<int64_t>(graph.source.size());
  const auto of_edges = draws<Value>(random, edges * heads);
  const auto of_sources = draws<Value>(random, kSources * heads);
  const auto of_targets = draws<Value>(random, kTargets * heads);
  const auto grad = draws<Value>(random, edges * heads);
  const EdgeLogits logits{name_of<Value>(),
                          heads,
                          address(of_edges),
                          address(of_sources),
                          kSources,
                          address(of_targets),
                          true,
                          0.2};
  std::vector<Value> first, first_derivative, first_sums;
  for (const Isa isa : supported_isas()) {
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<Value> out(edges * heads), derivative(edges * heads), sums(kTargets * heads);
      CHECK(edge_softmax(graph.arrays(), logits, address(out), pool, isa) == -1);
      CHECK(edge_softmax_backward(graph.arrays(), logits, address(out), address(grad),
                                  address(derivative), address(sums), pool, isa) == -1);
      if (first.empty()) first = out, first_derivative = derivative, first_sums = sums;
      CHECK(out == first && derivative == first_derivative && sums == first_sums);
      sum_edges(graph.arrays(), name_of<Value>(), heads, address(derivative), address(sums), pool,
                isa);
      CHECK(sums == first_sums);
    }
  }
  const long double tolerance = sizeof(Value) == 4 ? 1e-5L : 1e-13L;
  for (int64_t t = 0; t < kTargets; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<long double> shares;
      long double total = 0;
      for (int64_t e = graph.indptr[t]; e < graph.indptr[t + 1]; ++e) {
        const auto s = static_cast<int64_t>(graph.source[e]),
                   o = static_cast<int64_t>(graph.order[e]);
        const long double z = static_cast<long double>(of_edges[o * heads + h]) +
                              of_sources[s * heads + h] + of_targets[t * heads + h];
        shares.push_back(std::exp(z > 0 ? z : 0.2L * z));
        total += shares.back();
      }
      for (int64_t e = graph.indptr[t]; e < graph.indptr[t + 1]; ++e) {
        const auto o = static_cast<int64_t>(graph.order[e]);
        const long double share = shares[e - graph.indptr[t]] / total;
        CHECK(std::abs(first[o * heads + h] - share) <= tolerance);
      }
    }
  }
  graph.source[7] = kSources;
  ThreadPool pool(2);
  std::vector<Value> out(edges * heads);
  CHECK(edge_softmax(graph.arrays(), logits, address(out), pool, Isa::generic) == 7);
}

template <class Value, class Id>
void logits_are_dot_products(std::mt19937_64& random, int64_t heads, int64_t channels) {
  constexpr int64_t kTargets = 300, kSources = 30;  // more than one block
  const Graph<Id> graph(random, kTargets, kSources);
  const auto edges = static_cast<int64_t>(graph.source.size());
  const int64_t width = heads * channels;
  const auto x = draws<Value>(random, kSources * width), y = draws<Value>(random, kTargets * width);
  const auto edge = draws<Value>(random, edges * width), att = draws<Value>(random, width);
  const auto grad = draws<Value>(random, edges * heads);
  const AdditiveRows rows{name_of<Value>(), heads,         channels,     address(x), kSources,
                          address(y),       address(edge), address(att), 0.2};
  std::vector<Value> first, first_derivative, first_edges, first_att;
  for (const Isa isa : supported_isas()) {
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<Value> out(edges * heads), derivative(kTargets * width), by(edges * width);
      std::vector<Value> of_att(width);
      CHECK(additive_logits(graph.arrays(), rows, address(out), pool, isa) == -1);
      CHECK(additive_logits_backward(graph.arrays(), rows, address(grad), address(derivative),
                                     address(by), address(of_att), pool, isa) == -1);
      if (first.empty()) {
        first = out, first_derivative = derivative, first_edges = by, first_att = of_att;
      }
      CHECK(out == first && derivative == first_derivative && by == first_edges);
      CHECK(of_att == first_att);
    }
  }
  const long double tolerance = sizeof(Value) == 4 ? 1e-4L : 1e-12L;
  for (int64_t t = 0; t < kTargets; ++t) {
    for (int64_t e = graph.indptr[t]; e < graph.indptr[t + 1]; ++e) {
      const auto s = static_cast<int64_t>(graph.source[e]),
                 o = static_cast<int64_t>(graph.order[e]);
      for (int64_t h = 0; h < heads; ++h) {
        long double sum = 0;
        for (int64_t i = h * channels; i < (h + 1) * channels; ++i) {
          const long double u =
              static_cast<long double>(x[s * width + i]) + y[t * width + i] + edge[o * width + i];
          sum += att[i] * (u > 0 ? u : 0.2L * u);
        }
        CHECK(std::abs(first[o * heads + h] - sum) <= tolerance);
      }
    }
  }
}

}  // namespace

void test_attention() {
  std::mt19937_64 random(20);
  for (const int64_t heads : {1, 2, 3, 4, 6, 8, 17}) {
    shares_are_softmax<float, int32_t>(random, heads);
    shares_are_softmax<double, int64_t>(random, heads);
  }
  for (const int64_t channels : {1, 8, 13}) {
    logits_are_dot_products<float, int32_t>(random, 3, channels);
    logits_are_dot_products<double, int64_t>(random, 2, channels);
  }
}

}  // namespace gnnsys::test
