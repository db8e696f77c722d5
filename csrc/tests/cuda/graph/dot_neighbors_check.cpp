#include "cuda/graph/dot_neighbors.cuh"

#include "reference.hpp"

namespace {

namespace cuda = gnnsys::cuda;
using namespace reference;
using simt::draw;

struct Case {
  std::vector<i64> degrees;
  i64 num_rows, heads, channels;
  bool order, scale, mean;
  i64 first = 0;  // number of the first row, edge and place
  bool faulty = false;
};

template <class Value, class Id, int kVector>
void check_case(simt::Random& random, const Case& c) {
  Edges<Id> edges = draw_edges<Id>(random, c.degrees, c.num_rows, c.order);
  const Rows<Value> rows{values<Value>(random, c.num_rows * c.heads * c.channels),
                         {},
                         values<Value>(random, c.scale ? c.num_rows : 0),
                         c.heads,
                         c.channels,
                         c.mean};
  const i64 num_targets = edges.targets(), num_edges = edges.indptr.back();
  const std::vector<Value> y = values<Value>(random, num_targets * c.heads * c.channels);
  std::vector<Value> expected = dots(edges, rows, y);
  simt::Exact<Device<Value>> out(expected.size());
  const i64 bad = c.faulty ? draw(random, 0, num_edges - 1) : -1;
  if (c.faulty) {
    edges.source[bad] = static_cast<Id>(draw(random, 0, 1) ? c.num_rows : -1 - c.first);
    for (i64 h = 0; h < c.heads; ++h) {  // stays as it was
      std::memcpy(static_cast<void*>(&expected[edges.place_of(bad) * c.heads + h]), out.data(),
                  sizeof(Value));
    }
  }
  OnDevice<Value, Id> device(edges, rows, c.first);
  simt::Exact<Device<Value>> other(y.size());
  if (!y.empty()) {
    std::memcpy(static_cast<void*>(other.data()), y.data(), y.size() * sizeof(Value));
  }
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0});
  cuda::WeightDerivative<Device<Value>> put{device.moved(out.data(), c.heads)};
  const simt::Dim3 grid{static_cast<unsigned>(draw(random, 1, 3))}, block{64};
  simt::launch(grid, block, cuda::dot_edges<Device<Value>, Id, kVector, decltype(put)>,
               device.edges, device.rows, other.data(), put, fault.data());
  EXPECT(fault[0] == (c.faulty ? cuda::kSourceOutOfRange : 0u), "fault %u", fault[0]);
  if (c.faulty) {
    const i64 said = static_cast<i64>(u64{fault[1]} | u64{fault[2]} << 32);
    EXPECT(said == bad + c.first, "edge %lld, not %lld", said, bad);
  }
  EXPECT(same_bits<Value>(out, expected),
         "%lld targets, %lld edges, %lld heads of %lld values of %zu bytes, %d at once",
         num_targets, num_edges, c.heads, c.channels, sizeof(Value), kVector);
}

template <class Value, class Id, int kVector>
void check_sizes(simt::Random& random, bool tiny) {
  const auto flag = [&] { return draw(random, 0, 1) == 1; };
  const auto drawn = [&](std::vector<i64> degrees, i64 heads, i64 channels) {
    return Case{degrees, 50, heads, channels, flag(), flag(), flag()};
  };
  const auto check = [&](const Case& c) { check_case<Value, Id, kVector>(random, c); };
  if (tiny) return check(drawn({0, 1, 0, 33}, 2, kVector * draw(random, 1, 4)));
  std::vector<i64> degrees{0, 1, 31, 32, 33, 0, 2};
  if (kVector * sizeof(Value) == 16) degrees.push_back(1000);
  std::shuffle(degrees.begin(), degrees.end(), random);
  const i64 most = 200 / kVector;
  check(drawn(degrees, draw(random, 1, 2), kVector * draw(random, 1, 5)));
  check(drawn({0, 0, 3, 0, 33, 0}, 1, kVector * draw(random, 1, most)));
  check(drawn({30, 4, 7}, draw(random, 2, 4), kVector * draw(random, 1, most)));
  check(drawn(std::vector<i64>(70, 1), 1, kVector));
  check(drawn({}, 1, kVector));
  Case c = drawn({0, 0}, 3, kVector);
  c.num_rows = 0;
  check(c);
  c = drawn({4, 0, 40, 5}, 3, kVector);
  c.faulty = true;
  check(c);
  if (sizeof(Id) == 8) {
    c.first = (i64{1} << 33) + 64;
    check(c);
    c.faulty = false;
    c.order = c.scale = true;
    check(c);
  }
}

template <class Value, int kVector>
void check_all(simt::Random& random, bool tiny) {
  check_sizes<Value, i32, kVector>(random, tiny);
  check_sizes<Value, i64, kVector>(random, tiny);
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  check_all<float, 4>(random, tiny);
  check_all<float, 1>(random, tiny);
  check_all<BFloat16, 8>(random, tiny);
  check_all<double, 2>(random, tiny);
  if (tiny) return;
  check_all<float, 2>(random, tiny);
  check_all<double, 1>(random, tiny);
  check_all<BFloat16, 1>(random, tiny);
  check_all<BFloat16, 2>(random, tiny);
  check_all<BFloat16, 4>(random, tiny);
}
