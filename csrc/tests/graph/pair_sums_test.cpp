#include "gnnsys/graph/pair_sums.hpp"

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

// Pair by pair, in long double; every instruction set and number of threads gives the same bits.
template <class Value, class Id>
void sums_are_those_of_their_pairs(std::mt19937_64& random, int64_t rows, int64_t width) {
  std::uniform_real_distribution<double> draw(-1, 1);
  std::vector<int64_t> indptr{0};
  std::vector<Id> other;
  std::vector<Value> weight;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t count = static_cast<int64_t>(random() % 30); count > 0; --count) {
      other.push_back(static_cast<Id>(random() % static_cast<uint64_t>(rows)));
      weight.push_back(random() % 4 == 0 ? Value(0) : static_cast<Value>(draw(random) + 1));
      weight.push_back(static_cast<Value>(draw(random) + 1));
    }
    indptr.push_back(static_cast<int64_t>(other.size()));
  }
  std::vector<Value> u(rows * width), grad(rows);
  for (Value& value : u) value = static_cast<Value>(draw(random) / std::sqrt(width + 1.0));
  for (Value& value : grad) value = static_cast<Value>(draw(random));
  const Value tau = Value(1.25);
  std::vector<long double> sums(rows), derivative(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t e = indptr[i]; e < indptr[i + 1]; ++e) {
      const auto j = static_cast<int64_t>(other[e]);
      long double dot = 0;
      for (int64_t c = 0; c < width; ++c) {
        dot += static_cast<long double>(u[i * width + c]) * u[j * width + c];
      }
      const long double exponential = std::exp(tau * dot);
      sums[i] += weight[2 * e] * exponential;
      const long double factor = static_cast<long double>(weight[2 * e]) * grad[i] +
                                 static_cast<long double>(weight[2 * e + 1]) * grad[j];
      for (int64_t c = 0; c < width; ++c) {
        derivative[i * width + c] += tau * exponential * factor * u[j * width + c];
      }
    }
  }
  const Pairs<Value, Id> pairs{indptr.data(), rows, other.data(), weight.data()};
  const long double tolerance = sizeof(Value) == 4 ? 1e-5L : 1e-13L;
  std::vector<Value> first_sums, first_derivative;
  for (const Isa isa : supported_isas()) {
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<Value> out(rows), by(rows * width);
      pair_sums(pairs, u.data(), width, tau, out.data(), pool, isa);
      pair_sums_backward(pairs, u.data(), width, tau, grad.data(), by.data(), pool, isa);
      for (int64_t i = 0; i < rows; ++i) {
        CHECK(std::abs(out[i] - sums[i]) <= tolerance * (1 + sums[i]));
      }
      for (int64_t i = 0; i < rows * width; ++i) {
        CHECK(std::abs(by[i] - derivative[i]) <= tolerance * 100);
      }
      if (first_sums.empty()) {
        first_sums = out;
        first_derivative = by;
      }
      CHECK(out == first_sums);
      CHECK(by == first_derivative);
    }
  }
}

}  // namespace

void test_pair_sums() {
  std::mt19937_64 random(5);
  for (const int64_t rows : {1, 7, 900}) {
    for (const int64_t width : {1, 8, 37}) {
      sums_are_those_of_their_pairs<float, int32_t>(random, rows, width);
      sums_are_those_of_their_pairs<double, int64_t>(random, rows, width);
    }
  }
}

}  // namespace gnnsys::test
