#include "cuda/cache/execute_plan.cuh"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "../rows/casts.hpp"
#include "simt/check.hpp"

namespace {

using namespace gnnsys::cuda;
using simt::draw;
using Bytes = std::vector<char>;

// Sizes of a cache and its memory. Numbers of slots, cells and peers' slots begin at `base`: with a
// large one their rows lie beyond 2^32 bytes from where the areas are said to begin.
struct Shape {
  i64 row_bytes, stride, slots, cells, ids, base = 0;
  i64 peers = 2, peer_slots = 5;
};

struct Lists {
  i64 rows = 0;
  std::vector<i32> hits, peers, victim_in, fills, copies, victim_out;
  std::vector<i64> reads;  // the id of each staging row
};

// Memory in exact allocations, as kernels see it.
struct Device {
  Shape shape;
  simt::Exact<char> slots, cells;
  std::vector<simt::Exact<char>> peers;
  simt::Exact<Area> peer_areas;

  Device(const Shape& s, std::size_t offset)
      : shape(s),
        slots(size_of(s.slots), offset),
        cells(size_of(s.cells), offset),
        peer_areas(s.peers) {
    for (i64 i = 0; i < s.peers; ++i) {
      peers.emplace_back(size_of(s.peer_slots));
      peer_areas[i] = area(peers[i].data(), s.peer_slots);
    }
  }

  std::size_t size_of(i64 rows) const {
    return rows == 0 ? 0 : (rows - 1) * shape.stride + shape.row_bytes;
  }
  Area area(char* rows, i64 count) const {
    const u64 moved = reinterpret_cast<u64>(rows) - static_cast<u64>(shape.base * shape.stride);
    return {reinterpret_cast<char*>(moved), shape.base + count, shape.stride};
  }
};

// A cache that evicts by chance, and the rows of its table and of peers'. Ids from `ids` on are
// those of peers, which hold them all.
class Simulator {
 public:
  Simulator(const Shape& shape, simt::Random& random)
      : shape_(shape), random_(random), id_of_slot_(shape.slots, -1), id_of_cell_(shape.cells, -1) {
    rows_.resize(shape.ids + shape.peers * shape.peer_slots);
    for (Bytes& row : rows_) {
      row.resize(shape.row_bytes);
      for (char& byte : row) byte = static_cast<char>(random());
    }
  }

  const Bytes& row(i64 id) const { return rows_[id]; }
  i64 num_ids() const { return static_cast<i64>(rows_.size()); }
  std::vector<i64> residents() const {
    std::vector<i64> ids;
    for (i64 id : id_of_slot_) {
      if (id >= 0) ids.push_back(id);
    }
    return ids;
  }

  void fill_peers(Device& device) const {
    for (i64 id = shape_.ids; id < num_ids(); ++id) {
      const auto [peer, slot] = owner_of(id);
      std::copy(row(id).begin(), row(id).end(), &device.peers[peer][slot * shape_.stride]);
    }
  }

  Lists plan(const std::vector<i64>& ids) {
    Lists lists;
    lists.rows = static_cast<i64>(ids.size());
    const std::vector<i64> old_slots = id_of_slot_;
    std::vector<bool> slot_taken(shape_.slots), cell_taken(shape_.cells);
    std::map<i64, i64> first;
    for (i64 position = 0; position < lists.rows; ++position) {
      const i64 id = ids[position];
      if (const auto [at, fresh] = first.emplace(id, position); !fresh) {
        append(lists.copies, {position, at->second});
      } else if (id >= shape_.ids) {
        const auto [peer, slot] = owner_of(id);
        append(lists.peers, {position, peer, shape_.base + slot});
      } else if (const i64 slot = find(old_slots, id); slot >= 0) {
        append(lists.hits, {position, shape_.base + slot});
      } else if (const i64 cell = find(id_of_cell_, id); cell >= 0) {
        cell_taken[cell] = true;
        append(lists.victim_in, {position, shape_.base + cell, -1});
      } else {
        lists.reads.push_back(id);
        append(lists.fills, {position, 0, -1});
      }
    }
    std::shuffle(lists.reads.begin(), lists.reads.end(), random_);
    for (std::size_t i = 0; i < lists.fills.size(); i += 3) {
      lists.fills[i + 1] = static_cast<i32>(find(lists.reads, ids[lists.fills[i]]));
    }
    const std::vector<bool> cell_read = cell_taken;

    // A row that leaves slot or staging row `from`, to a cell that the batch doesn't read.
    const auto save = [&](i64 id, i64 from) {
      if (id < 0 || shape_.cells == 0 || draw(random_, 0, 1) == 0) return;
      const i64 cell = draw(random_, 0, shape_.cells - 1);
      if (cell_taken[cell] || find(id_of_cell_, id) >= 0) return;
      cell_taken[cell] = true;
      id_of_cell_[cell] = id;
      append(lists.victim_out, {from, shape_.base + cell});
    };
    const auto enter = [&](std::vector<i32>& list, bool from_cell) {
      for (std::size_t i = 0; i < list.size(); i += 3) {
        const i64 id = ids[list[i]];
        const i64 slot = shape_.slots > 0 ? draw(random_, 0, shape_.slots - 1) : -1;
        if (slot < 0 || slot_taken[slot] || draw(random_, 0, 4) == 0) {
          if (!from_cell) save(id, -1 - list[i + 1]);
          continue;
        }
        slot_taken[slot] = true;
        list[i + 2] = static_cast<i32>(shape_.base + slot);
        save(id_of_slot_[slot], shape_.base + slot);
        id_of_slot_[slot] = id;
      }
    };
    enter(lists.fills, false);
    enter(lists.victim_in, true);
    for (i64 cell = 0; cell < shape_.cells; ++cell) {  // in a slot now
      if (cell_read[cell] && find(id_of_slot_, id_of_cell_[cell]) >= 0) id_of_cell_[cell] = -1;
    }
    return lists;
  }

 private:
  static i64 find(const std::vector<i64>& values, i64 value) {
    const auto at = std::find(values.begin(), values.end(), value);
    return at == values.end() ? -1 : at - values.begin();
  }
  static void append(std::vector<i32>& list, std::initializer_list<i64> entry) {
    for (i64 value : entry) list.push_back(static_cast<i32>(value));
  }
  std::pair<i64, i64> owner_of(i64 id) const {
    return {(id - shape_.ids) / shape_.peer_slots, (id - shape_.ids) % shape_.peer_slots};
  }

  const Shape shape_;
  simt::Random& random_;
  std::vector<i64> id_of_slot_, id_of_cell_;
  std::vector<Bytes> rows_;
};

// A plan's staging rows, in an order and with gaps that nothing but their offsets tells.
struct Staged {
  std::vector<i64> offsets;
  simt::Exact<char> rows;

  Staged(const Shape& shape, const Simulator& simulator, const Lists& lists, i64 word,
         simt::Random& random)
      : offsets(place(shape, lists, word, random)),
        rows(offsets.empty()
                 ? 0
                 : *std::max_element(offsets.begin(), offsets.end()) + shape.row_bytes) {
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      const Bytes& row = simulator.row(lists.reads[i]);
      std::copy(row.begin(), row.end(), rows.data() + offsets[i]);
    }
  }

  static std::vector<i64> place(const Shape& shape, const Lists& lists, i64 word,
                                simt::Random& random) {
    std::vector<i64> offsets(lists.reads.size());
    i64 end = 0;
    for (i64& offset : offsets) {
      offset = end + word * draw(random, 0, 3);
      end = offset + shape.row_bytes;
    }
    std::shuffle(offsets.begin(), offsets.end(), random);
    return offsets;
  }
};

// The plan's four steps as BatchPlan says them, on the slots and cells and (rows, row_bytes) `out`.
void execute(const Lists& lists, Staged& staged, const Device& device, Bytes& slots, Bytes& cells,
             Bytes& out) {
  const Shape& s = device.shape;
  const auto move = [&](const char* from, char* to) { std::memcpy(to, from, s.row_bytes); };
  const auto slot = [&](i64 i) { return slots.data() + (i - s.base) * s.stride; };
  const auto cell = [&](i64 i) { return cells.data() + (i - s.base) * s.stride; };
  const auto stage = [&](i64 i) { return staged.rows.data() + staged.offsets[i]; };
  const auto at = [&](i64 i) { return out.data() + i * s.row_bytes; };
  const auto each = [](const std::vector<i32>& list, int columns, const auto& f) {
    for (std::size_t i = 0; i < list.size(); i += columns) f(&list[i]);
  };
  each(lists.hits, 2, [&](const i32* e) { move(slot(e[1]), at(e[0])); });
  each(lists.peers, 3,
       [&](const i32* e) { move(&device.peers[e[1]][(e[2] - s.base) * s.stride], at(e[0])); });
  each(lists.victim_in, 3, [&](const i32* e) { move(cell(e[1]), at(e[0])); });
  each(lists.fills, 3, [&](const i32* e) { move(stage(e[1]), at(e[0])); });
  each(lists.victim_out, 2,
       [&](const i32* e) { move(e[0] >= 0 ? slot(e[0]) : stage(-1 - e[0]), cell(e[1])); });
  each(lists.victim_in, 3, [&](const i32* e) {
    if (e[2] >= 0) move(cell(e[1]), slot(e[2]));
  });
  each(lists.fills, 3, [&](const i32* e) {
    if (e[2] >= 0) move(stage(e[1]), slot(e[2]));
  });
  each(lists.copies, 2, [&](const i32* e) { move(at(e[1]), at(e[0])); });
}

// A number outside [0, end), near and far.
i32 outside(simt::Random& random, i64 end) {
  const i64 values[] = {-1, end, -(i64{1} << 31), (i64{1} << 31) - 1};
  return static_cast<i32>(values[draw(random, 0, 3)]);
}

// Spoils a plan in one place and returns the fault that must be found; 0 where the plan has no such
// place.
u32 damage(Lists& lists, const Shape& s, simt::Random& random, bool tiny) {
  const auto pick = [&](std::vector<i32>& list, i64 columns) -> i32* {
    const auto n = static_cast<i64>(list.size()) / columns;
    return n == 0 ? nullptr : &list[draw(random, 0, n - 1) * columns];
  };
  const auto pick_position = [&]() -> i32* {
    switch (draw(random, 0, 3)) {
      case 0:
        return pick(lists.hits, 2);
      case 1:
        return pick(lists.victim_in, 3);
      case 2:
        return pick(lists.fills, 3);
      default:
        return pick(lists.copies, 2);
    }
  };
  const i64 slots = s.base + s.slots, cells = s.base + s.cells;
  const auto staged = static_cast<i64>(lists.reads.size());
  const auto too_large = [&](i64 end) {
    return static_cast<i32>(draw(random, 0, 1) == 0 ? end : (i64{1} << 31) - 1);
  };
  struct Column {
    std::vector<i32>& list;
    i64 columns, column;
    i32 value;
    u32 fault;
  };
  const Column columns[] = {
      {lists.hits, 2, 0, outside(random, lists.rows), kPlanPosition},
      {lists.hits, 2, 1, outside(random, slots), kPlanSlot},
      {lists.peers, 3, 0, outside(random, lists.rows), kPlanPosition},
      {lists.peers, 3, 1, outside(random, s.peers), kPlanPeer},
      {lists.peers, 3, 2, outside(random, s.base + s.peer_slots), kPlanSlot},
      {lists.victim_in, 3, 0, outside(random, lists.rows), kPlanPosition},
      {lists.victim_in, 3, 1, outside(random, cells), kPlanCell},
      {lists.victim_in, 3, 2, too_large(slots), kPlanSlot},
      {lists.fills, 3, 0, outside(random, lists.rows), kPlanPosition},
      {lists.fills, 3, 1, outside(random, staged), kPlanStaged},
      {lists.fills, 3, 2, too_large(slots), kPlanSlot},
      {lists.copies, 2, 0, outside(random, lists.rows), kPlanPosition},
      {lists.copies, 2, 1, outside(random, lists.rows), kPlanPosition},
      {lists.victim_out, 2, 0, too_large(slots), kPlanSlot},
      {lists.victim_out, 2, 0, static_cast<i32>(-1 - i64{too_large(staged)}), kPlanStaged},
      {lists.victim_out, 2, 1, outside(random, cells), kPlanCell},
  };
  const i64 kind = draw(random, 0, std::size(columns) + 2);
  if (kind < static_cast<i64>(std::size(columns))) {
    const Column& column = columns[kind];
    i32* entry = pick(column.list, column.columns);
    if (entry == nullptr) return 0;
    entry[column.column] = column.value;
    return column.fault;
  }
  switch (kind - static_cast<i64>(std::size(columns))) {
    case 0: {  // a position twice; ThreadSanitizer would see its two rows race
      i32 *entry = pick_position(), *other = pick_position();
      if (tiny || entry == nullptr || other == nullptr || *entry == *other) return 0;
      *entry = *other;
      return kPlanPosition;
    }
    case 1: {  // a position left out
      std::vector<i32>& list = draw(random, 0, 1) == 0 ? lists.hits : lists.copies;
      if (list.empty()) return 0;
      list.resize(list.size() - 2);
      return kPlanRows;
    }
    default: {  // a copy of a copy, or of itself
      i32 *entry = pick(lists.copies, 2), *other = pick(lists.copies, 2);
      if (entry == nullptr) return 0;
      entry[1] = other[0];
      return kPlanPosition;
    }
  }
}

// What a batch asks for.
enum class Ask { kNothing, kAny, kDistinct, kResidents, kOne };

std::vector<i64> draw_ids(Ask ask, const Simulator& simulator, i64 n, simt::Random& random) {
  std::vector<i64> ids(n);
  if (ask == Ask::kDistinct || ask == Ask::kResidents) {
    ids = simulator.residents();
    if (ask == Ask::kDistinct) {
      ids.resize(simulator.num_ids());
      for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<i64>(i);
    }
    std::shuffle(ids.begin(), ids.end(), random);
    ids.resize(std::min<std::size_t>(ids.size(), n));
    return ids;
  }
  if (ask == Ask::kNothing) return {};
  for (i64& id : ids) id = draw(random, 0, simulator.num_ids() - 1);
  if (ask == Ask::kOne) std::fill(ids.begin(), ids.end(), ids[0]);
  return ids;
}

simt::Dim3 draw_grid(simt::Random& random) { return {static_cast<unsigned>(draw(random, 1, 3))}; }

// Several batches on one cache, and damaged plans in between. `decode` makes of a stored row what
// Out delivers.
template <class Word, int kLanes, class Out, class Decoder>
void check_batches(const Shape& shape, simt::Random& random, bool tiny, const Decoder& decode) {
  constexpr i64 kWord = sizeof(Word);
  const i64 words = shape.row_bytes / kWord, out_bytes = words * Out::kOutBytes;
  Simulator simulator(shape, random);
  Device device(shape, kWord * draw(random, 0, 3));
  simulator.fill_peers(device);
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0});

  for (Ask ask :
       {Ask::kDistinct, Ask::kAny, Ask::kResidents, Ask::kOne, Ask::kNothing, Ask::kAny}) {
    const i64 n = tiny ? 12 : std::vector<i64>{1, 31, 33, 64, 300}[draw(random, 0, 4)];
    const std::vector<i64> ids = draw_ids(ask, simulator, n, random);
    const Lists lists = simulator.plan(ids);
    Staged staged(shape, simulator, lists, kWord, random);
    simt::Exact<char> out(lists.rows * out_bytes, Out::kSame ? kWord * draw(random, 0, 3) : 0);
    simt::Exact<u32> marks(std::vector<u32>(lists.rows));
    simt::Exact<i64> offsets(staged.offsets);

    const auto run = [&](const Lists& l) {
      simt::Exact<i32> hits(l.hits), peers(l.peers), victim_in(l.victim_in), fills(l.fills),
          copies(l.copies), victim_out(l.victim_out);
      const auto list = [](simt::Exact<i32>& values, i64 columns) {
        return List{values.data(), static_cast<i64>(values.size()) / columns};
      };
      const Plan plan{l.rows,         list(hits, 2),   list(peers, 3),     list(victim_in, 3),
                      list(fills, 3), list(copies, 2), list(victim_out, 2)};
      const CacheMemory memory{
          device.area(device.slots.data(), shape.slots),
          device.area(device.cells.data(), shape.cells),
          {staged.rows.data(), offsets.data(), static_cast<i64>(offsets.size())},
          device.peer_areas.data(),
          shape.peers,
          words};
      simt::launch(draw_grid(random), {64}, move_out_of_slots<Word, kLanes, Out>, plan, memory,
                   out.data(), marks.data(), fault.data());
      simt::launch(draw_grid(random), {64}, move_into_slots<Word, kLanes, Out>, plan, memory,
                   out.data(), marks.data(), fault.data());
      EXPECT(marks.copy() == std::vector<u32>(lists.rows), "the marks are left zero");
    };
    const Bytes old_slots = device.slots.copy(), old_cells = device.cells.copy();

    Lists bad = lists;
    if (const u32 expected = damage(bad, shape, random, tiny); expected != 0) {
      run(bad);
      EXPECT(fault[0] == expected, "fault %u, not %u", expected, fault[0]);
      run(lists);  // while the fault stays
      EXPECT(fault[0] == expected, "the first fault stays");
      EXPECT(device.slots.copy() == old_slots, "slots after fault %u", expected);
      std::copy(old_cells.begin(), old_cells.end(), device.cells.data());
      fault[0] = 0;
    }

    Bytes slots = old_slots, cells = old_cells, rows(lists.rows * shape.row_bytes);
    execute(lists, staged, device, slots, cells, rows);
    run(lists);
    EXPECT(fault[0] == 0, "fault %u of a plan that fits", fault[0]);
    for (i64 i = 0; i < lists.rows; ++i) {
      const char* row = &rows[i * shape.row_bytes];
      EXPECT(simulator.row(ids[i]) == Bytes(row, row + shape.row_bytes), "the reference's row");
    }
    EXPECT(out.copy() == decode(rows), "%lld rows of %lld bytes by words of %lld, %d lanes",
           lists.rows, shape.row_bytes, static_cast<i64>(kWord), kLanes);
    EXPECT(device.slots.copy() == slots, "slots of %lld bytes", shape.row_bytes);
    EXPECT(device.cells.copy() == cells, "cells of %lld bytes", shape.row_bytes);
  }
}

Shape draw_shape(i64 row_bytes, i64 word, simt::Random& random, bool tiny) {
  const i64 most = tiny ? 6 : 40;
  Shape shape{row_bytes, row_bytes + word * draw(random, 0, 2), draw(random, 0, most),
              draw(random, 0, most / 2), draw(random, 1, 2 * most)};
  if (draw(random, 0, 2) == 0) shape.peers = 0;
  if (draw(random, 0, 2) == 0) shape.base = (i64{1} << 31) - 1 - most;
  return shape;
}

template <class Word>
void check_copies(i64 row_bytes, simt::Random& random, bool tiny) {
  const auto same = [](const Bytes& rows) { return rows; };
  const Shape shape = draw_shape(row_bytes, sizeof(Word), random, tiny);
  const i64 words = row_bytes / static_cast<i64>(sizeof(Word));
  if (words <= 1) {
    check_batches<Word, 1, Copy<Word>>(shape, random, tiny, same);
  } else if (words <= 4) {
    check_batches<Word, 4, Copy<Word>>(shape, random, tiny, same);
  } else if (words <= kWarp) {
    check_batches<Word, 32, Copy<Word>>(shape, random, tiny, same);
  } else {
    check_batches<Word, 0, Copy<Word>>(shape, random, tiny, same);
  }
}

// By the widest word that the row allows.
void check_row_bytes(i64 row_bytes, simt::Random& random, bool tiny) {
  if (row_bytes % 16 == 0) {
    check_copies<uint4>(row_bytes, random, tiny);
  } else if (row_bytes % 8 == 0) {
    check_copies<uint2>(row_bytes, random, tiny);
  } else if (row_bytes % 4 == 0) {
    check_copies<u32>(row_bytes, random, tiny);
  } else if (row_bytes % 2 == 0) {
    check_copies<u16>(row_bytes, random, tiny);
  } else {
    check_copies<u8>(row_bytes, random, tiny);
  }
}

template <class Word, int kLanes, class Stored, class Delivered>
void check_decoding(i64 row_bytes, simt::Random& random, bool tiny) {
  const auto decode = [](const Bytes& rows) {
    Bytes out(rows.size() / sizeof(Stored) * sizeof(Delivered));
    for (std::size_t i = 0; i < rows.size() / sizeof(Stored); ++i) {
      Stored stored;
      std::memcpy(&stored, &rows[i * sizeof(Stored)], sizeof(Stored));
      const auto delivered = casts::cast<Delivered>(stored);
      std::memcpy(&out[i * sizeof(Delivered)], &delivered, sizeof(Delivered));
    }
    return out;
  };
  check_batches<Word, kLanes, Decode<Word, Stored, Delivered>>(
      draw_shape(row_bytes, sizeof(Word), random, tiny), random, tiny, decode);
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  for (i64 row_bytes : {1, 2, 12, 13, 128, 512}) check_row_bytes(row_bytes, random, tiny);
  check_row_bytes(draw(random, 1, tiny ? 100 : 3000), random, tiny);
  check_row_bytes(16 * draw(random, 1, tiny ? 6 : 187), random, tiny);
  check_row_bytes(tiny ? 35 : 2999, random, tiny);
  check_decoding<uint4, 4, Half, float>(64, random, tiny);
  check_decoding<uint2, 32, i8, float>(80, random, tiny);  // copies by more words than lanes
  check_decoding<uint4, 2, float, BFloat>(32, random, tiny);
  check_decoding<u32, 0, Half, float>(300, random, tiny);
}
