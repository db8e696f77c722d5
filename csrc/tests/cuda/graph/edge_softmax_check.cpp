#include "cuda/graph/edge_softmax.cuh"

#include <limits>

#include "cuda/graph/sum_neighbors.cuh"
#include "reference.hpp"

namespace {

namespace cuda = gnnsys::cuda;
using namespace reference;
using simt::draw;

constexpr int kThreads = 64;

struct Case {
  std::vector<i64> degrees;
  i64 heads, hub_degree;
  bool logits, source, target, order;
  double slope, scale;  // what scores are multiplied by
  bool faulty = false;
};

// Values of the threads of a team, in the order in which it adds them.
template <class Sum>
Sum add_up(std::vector<Sum> sums, i64 in_warp) {
  for (i64 step = 1; step < in_warp; step *= 2) {
    std::vector<Sum> before = sums;
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += before[i ^ step];
  }
  Sum sum = sums[0];
  for (std::size_t warp = in_warp; warp < sums.size(); warp += in_warp) sum += sums[warp];
  return sum;
}

// On a GPU, whose exp is not the C library's, values that differ by no more than that and the
// roundings of sums explain.
template <class Value>
bool agree(simt::Exact<Device<Value>>& found, const std::vector<Value>& expected) {
  if (!simt::kOnGpu) return same_bits<Value>(found, expected);
  constexpr double most = sizeof(Value) == 8 ? 1e-13 : sizeof(Value) == 4 ? 1e-5 : 1e-2;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    Value value;
    std::memcpy(static_cast<void*>(&value), &found[i], sizeof value);
    const double error = std::abs(widen(value) - widen(expected[i]));
    if (!(error <= most * std::max(1.0, std::abs(double{widen(expected[i])})))) return false;
  }
  return true;
}

template <class Value, class Id>
void check_case(simt::Random& random, const Case& c) {
  using Sum = Wide<Value>;
  constexpr i64 kRows = 40;
  Edges<Id> edges = draw_edges<Id>(random, c.degrees, kRows, c.order);
  const i64 targets = edges.targets(), num_edges = edges.indptr.back(), heads = c.heads;
  const auto scores = [&](bool is_there, i64 rows) {
    auto drawn = values<Value>(random, is_there ? rows * heads : 0);
    for (Value& value : drawn) narrow(static_cast<Sum>(c.scale) * widen(value), value);
    return drawn;
  };
  const auto logits = scores(c.logits, num_edges), source = scores(c.source, kRows);
  const auto target = scores(c.target, targets), grad = values<Value>(random, num_edges * heads);
  const i64 bad = c.faulty ? draw(random, 0, num_edges - 1) : -1;
  if (c.faulty) edges.source[bad] = static_cast<Id>(draw(random, 0, 1) ? kRows : -1);
  const Sum slope = static_cast<Sum>(c.slope);

  i64 at_a_time = 1, most_hubs = 0;
  while (at_a_time < heads && at_a_time < cuda::kWarp) at_a_time *= 2;
  const i64 lanes = std::min<i64>(cuda::kWarp, at_a_time << draw(random, 0, 5));
  for (i64 degree : c.degrees) most_hubs += degree > c.hub_degree;
  std::vector<Value> expected(num_edges * heads), by_logits(expected), by_target(targets * heads);
  for (i64 i = 0; i < targets * heads; ++i) {
    const i64 t = i / heads, h = i % heads, from = edges.indptr[t], to = edges.indptr[t + 1];
    const i64 in_warp = (to - from > c.hub_degree ? cuda::kWarp : lanes) / at_a_time;
    const i64 slots = to - from > c.hub_degree ? kThreads / at_a_time : in_warp;
    const auto raw = [&](i64 e) {
      Sum z = logits.empty() ? 0 : widen(logits[edges.place_of(e) * heads + h]);
      if (!source.empty() && e != bad) z += widen(source[edges.source[e] * heads + h]);
      return target.empty() ? z : z + widen(target[i]);
    };
    const auto leaky = [&](Sum z) { return z > 0 ? z : slope * z; };
    const auto sum_of = [&](const auto& term) {
      std::vector<Sum> sums(slots);
      for (i64 e = from; e < to; ++e) sums[(e - from) % slots] += term(e);
      return add_up(sums, in_warp);
    };
    Sum most = -std::numeric_limits<Sum>::infinity();
    for (i64 e = from; e < to; ++e) most = std::max(most, leaky(raw(e)));
    const auto term = [&](i64 e) { return std::exp(leaky(raw(e)) - most); };
    const Sum sum = sum_of(term);
    const auto at = [&](i64 e) { return edges.place_of(e) * heads + h; };
    for (i64 e = from; e < to; ++e) narrow(term(e) / sum, expected[at(e)]);
    const Sum mean = sum_of([&](i64 e) { return widen(expected[at(e)]) * widen(grad[at(e)]); });
    const auto by = [&](i64 e) {
      const Sum unscaled = widen(expected[at(e)]) * (widen(grad[at(e)]) - mean);
      return raw(e) > 0 ? unscaled : slope * unscaled;
    };
    for (i64 e = from; e < to; ++e) narrow(by(e), by_logits[at(e)]);
    narrow(sum_of(by), by_target[i]);
  }

  OnDevice<Value, Id> device(edges, Rows<Value>{{}, {}, {}, 1, 1, false});
  const auto as_device = [](const std::vector<Value>& values) {
    simt::Exact<Device<Value>> same(values.size());
    if (!values.empty()) {
      std::memcpy(static_cast<void*>(same.data()), values.data(), values.size() * sizeof(Value));
    }
    return same;
  };
  auto on_logits = as_device(logits), on_source = as_device(source), on_target = as_device(target);
  auto on_grad = as_device(grad), on_softmax = as_device(expected);
  simt::Exact<Device<Value>> out(expected.size()), out_logits(expected.size());
  simt::Exact<Device<Value>> out_target(by_target.size());
  simt::Exact<i64> hubs(most_hubs);
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0}), count(std::vector<u32>{0});
  const auto or_null = [](auto& array) { return array.size() == 0 ? nullptr : array.data(); };
  const cuda::Scores<Device<Value>> given{
      or_null(on_logits), or_null(on_source), or_null(on_target), kRows, heads, slope};
  const simt::Dim3 grid{static_cast<unsigned>(draw(random, 1, 3))}, block{kThreads};
  simt::launch(grid, block, cuda::find_hubs<Id>, device.edges, c.hub_degree, hubs.data(),
               count.data());
  const auto run = [&]<class Work>(const Work& work) {
    simt::launch(grid, block, cuda::softmax_targets<Device<Value>, Id, Work>, device.edges, given,
                 lanes, at_a_time, c.hub_degree, work, fault.data());
    simt::launch(grid, block, cuda::softmax_hubs<Device<Value>, Id, kThreads, Work>, device.edges,
                 given, at_a_time, hubs.data(), count.data(), work, fault.data());
    const u32 wrong = c.faulty ? u32{cuda::kSourceOutOfRange} : 0;
    EXPECT(fault[0] == wrong && (wrong == 0 || fault[1] == bad), "fault %u", fault[0]);
    fault[0] = 0;
  };
  run(cuda::Softmax<Device<Value>>{out.data()});
  const char* what = "%lld targets, %lld edges, %lld heads of %zu bytes, %lld threads a target";
  EXPECT(agree(out, expected), what, targets, num_edges, heads, sizeof(Value), lanes);
  const bool asks = draw(random, 0, 3) > 0;  // for the derivative by target
  if (!asks) std::memcpy(by_target.data(), out_target.data(), by_target.size() * sizeof(Value));
  run(cuda::SoftmaxDerivative<Device<Value>>{on_softmax.data(), on_grad.data(), out_logits.data(),
                                             asks ? out_target.data() : nullptr});
  EXPECT(agree(out_logits, by_logits), what, targets, num_edges, heads, sizeof(Value), lanes);
  EXPECT(agree(out_target, by_target), what, targets, num_edges, heads, sizeof(Value), lanes);
}

template <class Value, class Id>
void check_all(simt::Random& random, bool tiny) {
  const auto flag = [&] { return draw(random, 0, 1) == 1; };
  const auto drawn = [&](std::vector<i64> degrees, i64 heads, i64 hub_degree) {
    return Case{degrees, heads, hub_degree, flag(), true, flag(), flag(), 0.2, 1};
  };
  const auto check = [&](const Case& c) { check_case<Value, Id>(random, c); };
  if (tiny) return check(drawn({0, 1, 5, 70}, draw(random, 1, 3), 20));
  std::vector<i64> degrees{0, 1, 31, 32, 33, 0, 300, 2, 4, 5};
  std::shuffle(degrees.begin(), degrees.end(), random);
  check(drawn(degrees, draw(random, 1, 4), draw(random, 30, 33)));
  check(drawn({3, 150, 0}, draw(random, 5, 40), 100));
  check(drawn(std::vector<i64>(70, 1), 1, 1 << 30));
  Case c = drawn({9, 20, 0, 140}, draw(random, 1, 2), 50);
  c.scale = 1e4;
  c.slope = flag() ? 1 : -0.5;
  check(c);
  c.source = false;
  c.logits = true;
  check(c);
  c = drawn({4, 40, 5}, 3, 20);
  c.faulty = true;
  check(c);
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  check_all<float, i32>(random, tiny);
  if (!tiny) check_all<double, i64>(random, tiny);
}
