#include "cuda/graph/pair_sums.cuh"

#include <limits>
#include <numeric>

#include "cuda/graph/sum_neighbors.cuh"
#include "reference.hpp"

namespace {

namespace cuda = gnnsys::cuda;
using namespace reference;
using simt::draw;

constexpr int kOverflows = 10000;  // tau whose exponentials are infinite

// Weighted pairs, each there both ways, by first row.
template <class Value, class Id>
struct Pairs {
  Edges<Id> edges;
  std::vector<Value> weight;  // (E, 2)
};

// Row 0 is in `hub` pairs, others in a few; some weights are 0.
template <class Value, class Id>
Pairs<Value, Id> draw_pairs(simt::Random& random, i64 num_rows, i64 hub) {
  std::vector<Value> matrix(num_rows * num_rows, -1);  // -1: no pair
  const auto put = [&](i64 i, i64 j) {
    if (i == j) return;
    for (const i64 at : {i * num_rows + j, j * num_rows + i}) {
      const bool one_way = draw(random, 0, 3) == 0;
      matrix[at] = one_way ? 0 : std::abs(values<Value>(random, 1)[0]);
    }
  };
  for (i64 k = 0; k < 2 * num_rows; ++k)
    put(draw(random, 0, num_rows - 1), draw(random, 0, num_rows - 1));
  for (i64 j = 1; j <= hub; ++j) put(0, j);
  Pairs<Value, Id> pairs{{{0}, {}, {}}, {}};
  for (i64 i = 0; i < num_rows; ++i) {
    for (i64 j = 0; j < num_rows; ++j) {
      if (matrix[i * num_rows + j] < 0) continue;
      pairs.edges.source.push_back(static_cast<Id>(j));
      pairs.weight.push_back(matrix[i * num_rows + j]);
      pairs.weight.push_back(matrix[j * num_rows + i]);
    }
    pairs.edges.indptr.push_back(static_cast<i64>(pairs.edges.source.size()));
  }
  return pairs;
}

template <class Value, class Id>
std::vector<Value> forward(const Pairs<Value, Id>& pairs, const std::vector<Value>& u, i64 width,
                           Value tau) {
  std::vector<Value> out(pairs.edges.targets());
  for (i64 i = 0; i < pairs.edges.targets(); ++i) {
    for (i64 e = pairs.edges.indptr[i]; e < pairs.edges.indptr[i + 1]; ++e) {
      const Value weight = pairs.weight[2 * e];
      if (weight == 0) continue;
      const i64 j = pairs.edges.source[e];
      out[i] += weight * std::exp(tau * dot(&u[i * width], &u[j * width], width));
    }
  }
  return out;
}

// `size` gets the sums of the terms' absolute values.
template <class Value, class Id>
std::vector<Value> backward(const Pairs<Value, Id>& pairs, const std::vector<Value>& u, i64 width,
                            Value tau, const simt::Exact<Value>& grad, std::vector<Value>& size) {
  std::vector<Value> out(u.size());
  size.resize(u.size());
  for (i64 i = 0; i < pairs.edges.targets(); ++i) {
    for (i64 e = pairs.edges.indptr[i]; e < pairs.edges.indptr[i + 1]; ++e) {
      const i64 j = pairs.edges.source[e];
      const Value exponential = std::exp(tau * dot(&u[i * width], &u[j * width], width));
      const Value factor = pairs.weight[2 * e] * grad[i] + pairs.weight[2 * e + 1] * grad[j];
      add_multiple(&out[i * width], &u[j * width], tau * exponential * factor, width);
      const Value most =
          tau * exponential *
          (pairs.weight[2 * e] * std::abs(grad[i]) + pairs.weight[2 * e + 1] * std::abs(grad[j]));
      for (i64 k = 0; k < width; ++k) size[i * width + k] += most * std::abs(u[j * width + k]);
    }
  }
  return out;
}

// The same bits; on a GPU, whose exp is not the C library's, values that differ by no more than
// that and the roundings of at most 100 additions explain.
template <class Value>
bool agree(simt::Exact<Value>& found, const std::vector<Value>& expected,
           const std::vector<Value>& size) {
  if (!simt::kOnGpu) return same_bits<Value>(found, expected);
  const Value most = 128 * std::numeric_limits<Value>::epsilon();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (found[i] == expected[i]) continue;
    if (!(std::abs(found[i] - expected[i]) <= most * size[i])) return false;
  }
  return true;
}

template <class Value, class Id, int kVector>
void check_pairs(simt::Random& random, i64 num_rows, i64 hub, i64 width, Value tau) {
  constexpr int kThreads = 64;
  constexpr i64 kHub = 20;
  Pairs<Value, Id> pairs = draw_pairs<Value, Id>(random, num_rows, hub);
  const i64 num_pairs = static_cast<i64>(pairs.edges.source.size());
  std::vector<Value> u = values<Value>(random, num_rows * width);
  for (Value& value : u) value /= static_cast<Value>(std::sqrt(width));
  simt::Exact<Value> weight(pairs.weight), grad(values<Value>(random, num_rows));
  const std::vector<Value> sums = forward(pairs, u, width, tau);
  std::vector<Value> size;
  const std::vector<Value> derivative = backward(pairs, u, width, tau, grad, size);

  OnDevice<Value, Id> device(pairs.edges, Rows<Value>{u, {}, {}, 1, width, false});
  simt::Exact<Value> terms(num_pairs), factors(num_pairs), out(num_rows), by_u(u.size());
  simt::Exact<i64> hubs(num_rows);
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0}), count(std::vector<u32>{0});
  const simt::Dim3 grid{static_cast<unsigned>(draw(random, 1, 3))}, block{kThreads};
  const auto dots = [&]<class Put>(const Put& put) {
    simt::launch(grid, block, cuda::dot_edges<Value, Id, kVector, Put>, device.edges, device.rows,
                 device.rows.x, put, fault.data());
  };
  const auto add_up = [&]<int kOfSum>(const cuda::Edges<Id>& edges, const cuda::Rows<Value>& rows,
                                      simt::Exact<Value>& to) {
    simt::launch(grid, block, cuda::sum_neighbors<Value, Id, kOfSum>, edges, rows, kHub, to.data(),
                 fault.data());
    simt::launch(grid, block, cuda::sum_hubs<Value, Id, kOfSum, kThreads>, edges, rows, hubs.data(),
                 count.data(), to.data(), fault.data());
  };
  simt::launch(grid, block, cuda::find_hubs<Id>, device.edges, kHub, hubs.data(), count.data());
  dots(cuda::PairTerms<Value>{weight.data(), tau, terms.data()});
  cuda::Edges<Id> segments = device.edges;
  segments.source = nullptr;
  add_up.template operator()<1>(segments, {terms.data(), num_pairs, 1, 1, nullptr, nullptr, false},
                                out);
  EXPECT(agree(out, sums, sums), "sums over %lld pairs of %lld rows of %lld values", num_pairs,
         num_rows, width);
  if (tau == kOverflows) return;  // derivatives are no numbers

  dots(cuda::PairFactors<Value>{weight.data(), grad.data(), tau, factors.data()});
  device.rows.weight = factors.data();
  add_up.template operator()<kVector>(device.edges, device.rows, by_u);
  EXPECT(agree(by_u, derivative, size), "derivatives by %lld pairs of %lld rows of %lld values",
         num_pairs, num_rows, width);
  EXPECT(fault[0] == 0, "fault %u", fault[0]);
}

template <class Value, int kVector>
void check_all(simt::Random& random, bool tiny) {
  const auto check = [&]<class Id>(Id, i64 num_rows, i64 hub, i64 width) {
    const Value tau = static_cast<Value>(draw(random, 1, 30)) / 10;
    check_pairs<Value, Id, kVector>(random, num_rows, hub, width, tau);
  };
  if (tiny) return check(i32{}, 30, 25, kVector);
  const i64 most = 200 / kVector;
  for (i64 hub : {i64{0}, i64{draw(random, 31, 33)}, i64{90}}) {
    check(i32{}, 40 + hub, hub, kVector * draw(random, 1, 10));
  }
  check(i64{}, 50, 25, kVector * draw(random, 1, most));
  check(i64{}, 1, 0, kVector);
  check(i32{}, 0, 0, kVector);
  check_pairs<Value, i32, kVector>(random, 30, 0, kVector, kOverflows);
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  check_all<float, 4>(random, tiny);
  check_all<double, 1>(random, tiny);
  if (tiny) return;
  check_all<float, 1>(random, tiny);
  check_all<float, 2>(random, tiny);
  check_all<double, 2>(random, tiny);
}
