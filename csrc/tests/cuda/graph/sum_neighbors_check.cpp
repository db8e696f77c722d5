#include "cuda/graph/sum_neighbors.cuh"

#include <numeric>

#include "reference.hpp"

namespace {

namespace cuda = gnnsys::cuda;
using namespace reference;
using simt::draw;

constexpr i64 kNone = i64{1} << 60;  // a degree that no target exceeds
constexpr int kThreads = 64;

// All three kernels; returns the edge of a fault, or -1.
template <int kVector, class Value, class Id>
i64 run(simt::Random& random, const cuda::Edges<Id>& edges, const cuda::Rows<Value>& rows,
        i64 hub_degree, simt::Exact<Value>& out) {
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0}), count(std::vector<u32>{0});
  i64 num_hubs = 0;
  for (i64 t = 0; t < edges.targets; ++t) {
    num_hubs += edges.indptr[t + 1] - edges.indptr[t] > hub_degree;
  }
  simt::Exact<i64> hubs(num_hubs);
  const simt::Dim3 grid{static_cast<unsigned>(draw(random, 1, 3))}, block{kThreads};
  simt::launch(grid, block, cuda::find_hubs<Id>, edges, hub_degree, hubs.data(), count.data());
  EXPECT(count[0] == num_hubs, "%u hubs, not %lld", count[0], num_hubs);
  simt::launch(grid, block, cuda::sum_neighbors<Value, Id, kVector>, edges, rows, hub_degree,
               out.data(), fault.data());
  if (num_hubs > 0) {
    simt::launch(grid, block, cuda::sum_hubs<Value, Id, kVector, kThreads>, edges, rows,
                 hubs.data(), count.data(), out.data(), fault.data());
  }
  if (fault[0] == 0) return -1;
  EXPECT(fault[0] == cuda::kSourceOutOfRange, "fault %u", fault[0]);
  return static_cast<i64>(u64{fault[1]} | u64{fault[2]} << 32);
}

struct Case {
  std::vector<i64> degrees;
  i64 num_rows, heads, channels, hub_degree;
  bool weight, order, scale, mean;
  i64 first = 0;  // number of the first row, edge and place
  bool faulty = false;
};

template <class Value, class Id, int kVector>
void check_case(simt::Random& random, const Case& c) {
  const i64 num_edges = std::accumulate(c.degrees.begin(), c.degrees.end(), i64{0});
  Rows<Value> rows{values<Value>(random, c.num_rows * c.heads * c.channels),
                   values<Value>(random, c.weight ? num_edges * c.heads : 0),
                   values<Value>(random, c.scale ? c.num_rows : 0),
                   c.heads,
                   c.channels,
                   c.mean};
  Edges<Id> edges = draw_edges<Id>(random, c.degrees, c.num_rows, c.order);
  const i64 bad = c.faulty ? draw(random, 0, num_edges - 1) : -1;
  if (c.faulty) edges.source[bad] = static_cast<Id>(draw(random, 0, 1) ? c.num_rows : -1 - c.first);
  OnDevice<Value, Id> device(edges, rows, c.first);
  const std::vector<Value> expected = sums(edges, rows);
  simt::Exact<Device<Value>> out(expected.size());
  const i64 fault = run<kVector>(random, device.edges, device.rows, c.hub_degree, out);
  EXPECT(fault == (c.faulty ? bad + c.first : -1), "fault of edge %lld, not %lld", fault, bad);
  EXPECT(same_bits<Value>(out, expected),
         "%zu targets, %lld edges, %lld heads of %lld values of %zu bytes, %d at once, hubs above "
         "%lld",
         c.degrees.size(), num_edges, c.heads, c.channels, sizeof(Value), kVector, c.hub_degree);
}

template <class Value, class Id, int kVector>
void check_sizes(simt::Random& random, bool tiny) {
  const auto flag = [&] { return draw(random, 0, 1) == 1; };
  const auto drawn = [&](std::vector<i64> degrees, i64 heads, i64 channels, i64 hub_degree) {
    return Case{degrees, 50, heads, channels, hub_degree, flag(), flag(), flag(), flag()};
  };
  const auto check = [&](const Case& c) { check_case<Value, Id, kVector>(random, c); };
  if (tiny) {
    return check(drawn({0, 1, 5, 150}, 2, kVector, draw(random, 3, 6)));
  }
  std::vector<i64> degrees{0, 1, 31, 32, 33, 0, 1000, 2};
  std::shuffle(degrees.begin(), degrees.end(), random);
  const i64 most = 200 / kVector;
  check(drawn(degrees, draw(random, 1, 4), kVector * draw(random, 1, 4), draw(random, 30, 33)));
  check(drawn({3, 0, 65}, 1, kVector * draw(random, 1, most), 40));
  check(drawn({64, 4, 7}, draw(random, 2, 4), kVector * draw(random, 1, most), kNone));
  check(drawn(std::vector<i64>(300, 1), 1, kVector, 0));
  check(drawn({}, 1, kVector, 3));
  Case c = drawn({0, 0}, 3, kVector, 0);
  c.num_rows = 0;
  check(c);
  // Vectors across heads, where no weights are.
  c = drawn({9, 20}, kVector, 3, 10);
  c.weight = c.order = false;
  check(c);
  for (i64 hub_degree : {i64{0}, kNone}) {
    c = drawn({4, 40, 5}, 2, kVector, hub_degree);
    c.faulty = true;
    check(c);
    if (sizeof(Id) == 8) {
      c.first = (i64{1} << 33) + 64;
      check(c);
      c.faulty = false;
      c.weight = c.order = c.scale = true;
      check(c);
    }
  }
}

// Sums of segments of rows that lie sorted, and that lie in any order.
template <class Value, int kVector>
void check_segments(simt::Random& random, bool tiny) {
  const i64 segments = tiny ? 3 : 40, n = tiny ? 30 : 600, channels = kVector * draw(random, 1, 5);
  std::vector<i64> segment(n);
  for (i64& s : segment) s = draw(random, 0, draw(random, 0, segments - 1));
  const Rows<Value> rows{values<Value>(random, n * channels), {}, {}, 1, channels, false};
  std::vector<Wide<Value>> sum(segments * channels);
  for (i64 i = 0; i < n; ++i) {
    for (i64 j = 0; j < channels; ++j) {
      sum[segment[i] * channels + j] += widen(rows.x[i * channels + j]);
    }
  }
  std::vector<Value> expected(sum.size());
  for (std::size_t i = 0; i < sum.size(); ++i) narrow(sum[i], expected[i]);

  Edges<i32> edges{{}, std::vector<i32>(n), {}};
  std::iota(edges.source.begin(), edges.source.end(), 0);
  std::ranges::stable_sort(edges.source, {}, [&](i32 i) { return segment[i]; });
  std::ranges::sort(segment);
  for (i64 s = 0; s <= segments; ++s) {
    edges.indptr.push_back(std::ranges::lower_bound(segment, s) - segment.begin());
  }
  simt::Exact<Device<Value>> out(expected.size());
  OnDevice<Value, i32> unsorted(edges, rows);
  EXPECT(run<kVector>(random, unsorted.edges, unsorted.rows, 20, out) == -1, "a fault");
  EXPECT(same_bits<Value>(out, expected), "segments of rows in any order");

  Rows<Value> sorted = rows;
  for (i64 i = 0; i < n; ++i) {
    std::copy_n(&rows.x[edges.source[i] * channels], channels, &sorted.x[i * channels]);
  }
  OnDevice<Value, i32> device(edges, sorted);
  device.edges.source = nullptr;
  EXPECT(run<kVector>(random, device.edges, device.rows, 20, out) == -1, "a fault");
  EXPECT(same_bits<Value>(out, expected), "segments of rows that are sorted");
}

template <class Value, int kVector>
void check_all(simt::Random& random, bool tiny) {
  check_sizes<Value, i32, kVector>(random, tiny);
  check_sizes<Value, i64, kVector>(random, tiny);
  check_segments<Value, kVector>(random, tiny);
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  check_all<float, 4>(random, tiny);
  check_all<BFloat16, 8>(random, tiny);
  check_all<double, 2>(random, tiny);
  if (tiny) return;
  check_all<float, 1>(random, tiny);
  check_all<float, 2>(random, tiny);
  check_all<double, 1>(random, tiny);
  check_all<BFloat16, 1>(random, tiny);
  check_all<BFloat16, 2>(random, tiny);
  check_all<BFloat16, 4>(random, tiny);
}
