#include "cuda/sampler/relabel.cuh"

#include <unordered_map>
#include <vector>

#include "launches.hpp"
#include "tables.hpp"

namespace {

using namespace gnnsys::cuda;
using simt::draw;
using simt::Exact;
using tables::Table;

// A batch's node list in the making, with the kernels that make it.
struct Batch {
  Table table;
  Exact<i64> node{0};
  Exact<u32> fault{std::vector<u32>{0, 0, 0}};

  explicit Batch(std::size_t capacity) : table(capacity) {}

  void add_seeds(simt::Random& random, const std::vector<i64>& seeds) {
    node = Exact(seeds);
    rebuild(random, table.size());
  }
  // A table of another size, of the nodes so far.
  void rebuild(simt::Random& random, std::size_t capacity) {
    table = Table(capacity);
    simt::launch(launches::some_blocks(random), {64}, add_nodes<i64>, table.view(), node.data(),
                 static_cast<i64>(node.size()), 0, nullptr, fault.data());
  }

  template <class Id>
  std::vector<i64> add_hop(simt::Random& random, const std::vector<Id>& sources) {
    const Exact<Id> ids(sources);
    const auto n = static_cast<i64>(ids.size()), before = static_cast<i64>(node.size());
    Exact<u32> entry(n);
    Exact<u8> is_new(n);
    Exact<i64> row(n);
    const auto run = [&](auto* kernel, auto... arguments) {
      simt::launch(launches::some_blocks(random), {64}, kernel, table.view(), arguments...);
    };
    run(add_nodes<Id>, ids.data(), n, before, entry.data(), fault.data());
    run(mark_new, entry.data(), n, before, is_new.data());
    const Exact<i64> rank = launches::prefix_sum(random, is_new.data(), n);
    Exact<i64> list(before + rank[n]);
    std::copy(node.data(), node.data() + before, list.data());
    run(place_new_nodes<Id>, ids.data(), entry.data(), rank.data(), n, before, list.data());
    run(read_places, entry.data(), n, row.data());
    node = std::move(list);
    return row.copy();
  }
};

// What the CPU's sampler does, one id after another.
struct Expected {
  std::unordered_map<i64, i64> place;
  std::vector<i64> node;

  i64 add(i64 id, bool seed) {
    const auto [at, fresh] = place.emplace(id, static_cast<i64>(node.size()));
    if (fresh || seed) node.push_back(id);
    return at->second;
  }
};

template <class Id>
void check_batch(simt::Random& random, const std::vector<i64>& pool, std::size_t seeds,
                 const std::vector<std::size_t>& hops) {
  const auto some = [&] { return pool[draw(random, 0, static_cast<i64>(pool.size()) - 1)]; };
  std::size_t ids = seeds;
  for (std::size_t hop : hops) ids += hop;
  Expected expected;
  Batch batch(tables::capacity_for(ids));
  std::vector<i64> first(seeds);
  for (i64& id : first) expected.add(id = some(), true);
  batch.add_seeds(random, first);
  for (std::size_t count : hops) {
    std::vector<Id> sources(count);
    std::vector<i64> rows(count);
    for (std::size_t i = 0; i < count; ++i) {
      sources[i] = static_cast<Id>(some());
      rows[i] = expected.add(sources[i], false);
    }
    EXPECT(batch.add_hop(random, sources) == rows, "places of %zu ids among %zu", count,
           pool.size());
    EXPECT(batch.node.copy() == expected.node, "nodes after %zu ids", count);
    batch.rebuild(random, 2 * batch.table.size());
  }
  EXPECT(batch.fault[0] == 0, "a fault");
}

std::vector<i64> random_ids(simt::Random& random, std::size_t count, i64 last) {
  std::vector<i64> ids(count);
  for (i64& id : ids) id = draw(random, 0, last);
  return ids;
}

void check_faults(simt::Random& random) {
  // A table that its ids just fill, and one more: all but the last get their places.
  Batch batch(8);
  batch.add_seeds(random, {3, 1, 4, 5, 9, 2, 6});
  EXPECT(batch.add_hop<i32>(random, {4, 8, 3}) == (std::vector<i64>{2, 7, 0}), "a full table");
  EXPECT(batch.fault[0] == 0, "no fault");
  EXPECT(batch.add_hop<i32>(random, {8, 10, 6}) == (std::vector<i64>{7, -1, 6}), "none is left");
  EXPECT(batch.fault[0] == kTableFull && batch.fault[1] == 10, "a full table");
  Batch other(8);
  EXPECT(other.add_hop<i64>(random, {5, -1}) == (std::vector<i64>{0, -1}), "an id below 0");
  EXPECT(other.fault[0] == kIdOutOfRange && other.fault[1] == ~0u, "an id below 0");
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  if (tiny) {
    check_batch<i64>(random, random_ids(random, 20, 1000), 30, {40, 20});
    check_batch<i64>(random, tables::colliding_ids(6, 128), 8, {30});
    return;
  }
  check_batch<i32>(random, random_ids(random, 700, (i64{1} << 31) - 1), 31, {33, 1000, 2000});
  check_batch<i64>(random, random_ids(random, 3000, i64{1} << 60), 100, {1, 3000, 0, 500});
  check_batch<i64>(random, {i64{1} << 40}, 3, {300});  // all the same
  check_batch<i32>(random, {0, 1}, 0, {0, 50});
  check_batch<i64>(random, tables::colliding_ids(50, 512), 40, {100, 90});
  check_faults(random);
}
