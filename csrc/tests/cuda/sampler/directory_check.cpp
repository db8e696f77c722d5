#include "cuda/sampler/directory.cuh"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "launches.hpp"
#include "tables.hpp"

namespace {

using namespace gnnsys::cuda;
using simt::draw;
using tables::Table;

// A cache that changes from batch to batch, and looks up ids in between.
template <class Id>
void check_cache(simt::Random& random, std::vector<Id> pool, int batches) {
  const std::size_t most = pool.size() / 2;  // that come at once
  Table table(tables::capacity_for(2 * pool.size()));
  std::size_t given = 0;
  std::unordered_map<Id, i32> slot_of;
  u32 fault[3] = {};
  const auto run = [&](auto&& kernel) {
    simt::launch(launches::some_blocks(random), {64}, 0, kernel);
  };
  const auto add = [&](const std::vector<Id>& ids, const std::vector<i32>& slots) {
    run([&] {
      add_rows(table.view(), ids.data(), slots.data(), static_cast<i64>(ids.size()), fault);
    });
    given += ids.size();
  };
  for (int batch = 0; batch < batches; ++batch) {
    std::shuffle(pool.begin(), pool.end(), random);
    const std::vector<Id> leave(pool.begin(), pool.begin() + draw(random, 0, most));
    run([&] { remove_rows(table.view(), leave.data(), static_cast<i64>(leave.size())); });
    for (Id id : leave) slot_of.erase(id);

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
      add(all, places);
    } else {
      add(come, slots);
    }

    std::vector<Id> asked = pool;
    for (Id other : {Id{-1}, Id{-2}, static_cast<Id>(pool[0] + 1), pool[0]}) asked.push_back(other);
    simt::Exact<i32> found(asked.size());
    run([&] {
      find_slots(table.view(), asked.data(), static_cast<i64>(asked.size()), found.data());
    });
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
  const std::vector<i64> ids{1, 2, 3, 4};
  const std::vector<i32> slots{0, 1, 2, 3};
  const i64 other[] = {5, 4};
  i32 found[2];
  u32 fault[3] = {};
  simt::launch({1}, {32}, 0, [&] { add_rows(table.view(), ids.data(), slots.data(), 4, fault); });
  simt::launch({1}, {32}, 0, [&] { find_slots(table.view(), other, 2, found); });
  EXPECT(found[0] == -1 && found[1] == 3 && fault[0] == 0, "a table without a free entry");
  simt::launch({1}, {32}, 0, [&] { remove_rows(table.view(), other, 2); });
  simt::launch({1}, {32}, 0, [&] { add_rows(table.view(), other, slots.data(), 1, fault); });
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
