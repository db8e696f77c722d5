#include "cuda/sampler/directory.cuh"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "launches.hpp"
#include "tables.hpp"

namespace {

using namespace gnnsys::cuda;
using simt::draw;
using simt::Exact;
using tables::Table;

// A cache that changes from batch to batch, and looks up ids in between.
template <class Id>
void check_cache(simt::Random& random, std::vector<Id> pool, int batches) {
  const std::size_t most = pool.size() / 2;  // that come at once
  Table table(tables::capacity_for(2 * pool.size()));
  std::size_t given = 0;
  std::unordered_map<Id, i32> slot_of;
  Exact<u32> fault(std::vector<u32>{0, 0, 0});
  const auto add = [&](const Exact<Id>& ids, const Exact<i32>& slots) {
    simt::launch(launches::some_blocks(random), {64}, add_rows<Id>, table.view(), ids.data(),
                 slots.data(), static_cast<i64>(ids.size()), fault.data());
    given += ids.size();
  };
  for (int batch = 0; batch < batches; ++batch) {
    std::shuffle(pool.begin(), pool.end(), random);
    const Exact<Id> leave(std::vector<Id>(pool.begin(), pool.begin() + draw(random, 0, most)));
    simt::launch(launches::some_blocks(random), {64}, remove_rows<Id>, table.view(), leave.data(),
                 static_cast<i64>(leave.size()));
    for (Id id : leave.copy()) slot_of.erase(id);

    std::shuffle(pool.begin(), pool.end(), random);
    std::vector<Id> come(pool.begin(), pool.begin() + draw(random, 0, most));
    std::vector<i32> slots;
    for (Id id : come) slots.push_back(slot_of[id] = static_cast<i32>(draw(random, 0, 1 << 30)));
    come.push_back(-1);
    slots.push_back(5);
    if (given + come.size() > table.size() / 2) {  // made anew
      table = Table(table.size());
      given = 0;
      std::vector<Id> all;
      std::vector<i32> places;
      for (const auto& [id, slot] : slot_of) {
        all.push_back(id);
        places.push_back(slot);
      }
      add(Exact(all), Exact(places));
    } else {
      add(Exact(come), Exact(slots));
    }

    std::vector<Id> ids = pool;
    for (Id other : {Id{-1}, Id{-2}, static_cast<Id>(pool[0] + 1), pool[0]}) ids.push_back(other);
    const Exact<Id> asked(ids);
    Exact<i32> found(asked.size());
    simt::launch(launches::some_blocks(random), {64}, find_slots<Id>, table.view(), asked.data(),
                 static_cast<i64>(asked.size()), found.data());
    for (std::size_t i = 0; i < asked.size(); ++i) {
      const auto at = slot_of.find(asked[i]);
      EXPECT(found[i] == (at == slot_of.end() ? -1 : at->second), "the slot of id %lld",
             static_cast<long long>(asked[i]));
    }
  }
  EXPECT(fault[0] == 0, "a fault");
}

void check_full(simt::Random&) {
  Table table(4);
  const Exact<i64> ids(std::vector<i64>{1, 2, 3, 4}), other(std::vector<i64>{5, 4});
  const Exact<i32> slots(std::vector<i32>{0, 1, 2, 3});
  Exact<i32> found(2);
  Exact<u32> fault(std::vector<u32>{0, 0, 0});
  const auto add = [&](const Exact<i64>& some, i64 n) {
    simt::launch({1}, {32}, add_rows<i64>, table.view(), some.data(), slots.data(), n,
                 fault.data());
  };
  add(ids, 4);
  simt::launch({1}, {32}, find_slots<i64>, table.view(), other.data(), 2, found.data());
  EXPECT(found[0] == -1 && found[1] == 3 && fault[0] == 0, "a table without a free entry");
  simt::launch({1}, {32}, remove_rows<i64>, table.view(), other.data(), 2);
  add(other, 1);
  EXPECT(fault[0] == kTableFull && fault[1] == 5, "a full table");
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  std::vector<i64> far = tables::colliding_ids(tiny ? 8 : 60, 64);
  for (int i = 0; i < (tiny ? 20 : 500); ++i) far.push_back(draw(random, 0, i64{1} << 62) * 2);
  check_cache(random, far, tiny ? 3 : 12);
  std::vector<i32> near;
  for (i32 id = 0; id < 40; ++id) near.push_back(2 * id);
  check_cache(random, near, tiny ? 2 : 10);
  check_full(random);
}
