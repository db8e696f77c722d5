#include "cuda/graph/segment_matmul.cuh"

#include "reference.hpp"

namespace {

namespace cuda = gnnsys::cuda;
using namespace reference;
using simt::draw;

struct Case {
  std::vector<i64> sizes;  // of the segments
  i64 num_rows, blocks, columns, out_columns;
  bool indexed;
  i64 first = 0;  // number of the first row of x
  bool faulty = false;
};

template <class Value>
std::vector<Device<Value>> on_device(const std::vector<Value>& values) {
  std::vector<Device<Value>> same(values.size());
  if (!values.empty()) {
    std::memcpy(static_cast<void*>(same.data()), values.data(), values.size() * sizeof(Value));
  }
  return same;
}

// Of the rows of segments, `most` at a time.
std::vector<cuda::Stretch> stretches(const std::vector<i64>& sizes, i64 most) {
  std::vector<cuda::Stretch> found;
  i64 first = 0;
  for (std::size_t type = 0; type < sizes.size(); ++type) {
    const i64 last = first + sizes[type];
    for (; first < last; first += most) {
      found.push_back({static_cast<i64>(type), first, std::min(first + most, last)});
    }
    first = last;
  }
  return found;
}

template <class Value, class Id, int kVector, int kColumns>
void check_case(simt::Random& random, const Case& c) {
  using Sum = Wide<Value>;
  const i64 wide = c.blocks * c.columns, out_wide = c.blocks * c.out_columns;
  const i64 of_weight = wide * c.out_columns, num_types = static_cast<i64>(c.sizes.size());
  i64 num_results = 0;
  for (i64 size : c.sizes) num_results += size;
  const auto x = values<Value>(random, c.num_rows * wide);
  const auto weight = values<Value>(random, num_types * of_weight);
  const auto grad = values<Value>(random, num_results * out_wide);
  std::vector<Id> index(c.indexed ? num_results : 0);
  for (Id& each : index) each = static_cast<Id>(draw(random, 0, c.num_rows - 1) + c.first);
  const i64 bad = c.faulty ? draw(random, 0, num_results - 1) : -1;
  if (c.faulty) index[bad] = static_cast<Id>(draw(random, 0, 1) ? c.num_rows + c.first : -1);
  const auto row_of = [&](i64 p) { return c.indexed ? static_cast<i64>(index[p]) - c.first : p; };

  const auto tiles = stretches(c.sizes, cuda::kSide);
  const auto chunks = stretches(c.sizes, draw(random, 20, 80));
  simt::Exact<Device<Value>> on_x(on_device(x)), on_weight(on_device(weight));
  simt::Exact<Device<Value>> on_grad(on_device(grad)), out(num_results * out_wide);
  simt::Exact<Id> on_index(index);
  simt::Exact<cuda::Stretch> on_tiles(tiles), on_chunks(chunks);
  simt::Exact<Sum> sums(chunks.size() * of_weight);
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0});
  const u64 back = static_cast<u64>(c.first * wide) * sizeof(Value);
  const cuda::IndexedRows<Device<Value>, Id> rows{
      reinterpret_cast<const Device<Value>*>(reinterpret_cast<u64>(on_x.data()) - back),
      c.num_rows + c.first, c.indexed ? on_index.data() : nullptr, c.blocks, c.columns};
  const simt::Dim3 grid{static_cast<unsigned>(draw(random, 1, 3))};
  const simt::Dim3 block{cuda::Product<Device<Value>, kVector, kColumns>::kThreads};
  simt::launch(grid, block, cuda::segment_matmul<Device<Value>, Id, kVector, kColumns>, rows,
               on_tiles.data(), static_cast<i64>(tiles.size()), on_weight.data(), c.out_columns,
               out.data(), fault.data());
  const auto expect_fault = [&] {
    EXPECT(fault[0] == (c.faulty ? cuda::kIndexOutOfRange : 0u), "fault %u", fault[0]);
    const i64 said = static_cast<i64>(u64{fault[1]} | u64{fault[2]} << 32);
    if (c.faulty) EXPECT(said == bad, "row %lld, not %lld", said, bad);
    fault[0] = 0;
  };
  expect_fault();

  std::vector<Value> expected(out.size());
  for (const cuda::Stretch& tile : tiles) {
    for (i64 p = tile.first; p < tile.last; ++p) {
      for (i64 i = 0; i < out_wide; ++i) {
        const i64 b = i / c.out_columns;
        const Value* w = &weight[tile.type * of_weight + b * c.columns * c.out_columns];
        Sum sum = 0;
        for (i64 k = 0; k < c.columns && p != bad; ++k) {
          const Value other = w[k * c.out_columns + i % c.out_columns];
          sum = std::fma(widen(x[row_of(p) * wide + b * c.columns + k]), widen(other), sum);
        }
        narrow(sum, expected[p * out_wide + i]);
      }
    }
  }
  const char* what = "%lld rows of %lld x %lld to %lld values of %zu bytes, %d at once";
  EXPECT(same_bits<Value>(out, expected), what, num_results, c.blocks, c.columns, c.out_columns,
         sizeof(Value), kVector);

  simt::launch(grid, block, cuda::sum_outer_products<Device<Value>, Id, kVector, kColumns>, rows,
               on_chunks.data(), static_cast<i64>(chunks.size()), on_grad.data(), c.out_columns,
               sums.data(), fault.data());
  expect_fault();
  std::vector<Sum> by_weight(sums.size());
  for (std::size_t n = 0; n < chunks.size(); ++n) {
    for (i64 p = chunks[n].first; p < chunks[n].last; ++p) {
      for (i64 i = 0; i < of_weight && p != bad; ++i) {
        const i64 k = i / c.out_columns, b = k / c.columns;  // k: of all blocks
        const Value other = grad[p * out_wide + b * c.out_columns + i % c.out_columns];
        Sum& sum = by_weight[n * of_weight + i];
        sum = std::fma(widen(x[row_of(p) * wide + k]), widen(other), sum);
      }
    }
  }
  EXPECT(same_bits<Sum>(sums, by_weight), what, num_results, c.blocks, c.columns, c.out_columns,
         sizeof(Value), kVector);
}

template <class Value, class Id, int kVector, int kColumns>
void check_all(simt::Random& random, bool tiny) {
  const auto check = [&](const Case& c) { check_case<Value, Id, kVector, kColumns>(random, c); };
  const auto up_to = [&](i64 most) { return kVector * draw(random, 1, most / kVector); };
  if (tiny) return check({{0, 3, 66}, 9, 1, up_to(40), up_to(24), true});
  std::vector<i64> sizes{0, 1, 63, 64, 65, 0, 20};
  std::shuffle(sizes.begin(), sizes.end(), random);
  check({sizes, 30, draw(random, 1, 3), up_to(40), up_to(40), true});
  check({{0, 80}, 80, 1, 80, up_to(2 * kColumns), false});
  check({{}, 0, 1, kVector, kVector, false});
  Case c{{5, 70}, 8, 2, up_to(20), up_to(20), true};
  c.faulty = true;
  check(c);
  if (sizeof(Id) == 4) return;
  c.faulty = false;
  c.first = (i64{1} << 33) + 64;
  check(c);
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  check_all<float, i64, 4, 16>(random, tiny);
  check_all<BFloat16, i32, 8, 32>(random, tiny);
  if (!tiny) check_all<double, i64, 1, 64>(random, tiny);
}
