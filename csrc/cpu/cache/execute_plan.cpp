#include "gnnsys/cache/execute_plan.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "gnnsys/errors.hpp"
#include "gnnsys/rows/gather.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPrefetchBytes = 512;
constexpr int64_t kDistance = 8;  // rows ahead: a move touches scattered lines at both ends
constexpr int64_t kShareBytes = int64_t{256} << 10;

void require_fit(bool holds) {
  require(holds, "execute_plan: the plan does not fit the batch or the cache");
}

bool within(int64_t value, int64_t end) { return value >= 0 && value < end; }

int64_t address_of(const char* base, int64_t offset) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(base)) + offset;
}

char* pointer(int64_t address) { return reinterpret_cast<char*>(static_cast<uintptr_t>(address)); }

// Addresses of rows, each looked up within its area.
struct Areas {
  const CacheMemory& memory;

  int64_t slot(int64_t slot) const {
    require_fit(within(slot, memory.num_slots));
    return address_of(memory.slots, slot * memory.row_bytes);
  }
  int64_t cell(int64_t cell) const {
    require_fit(within(cell, memory.num_cells));
    return address_of(memory.cells, cell * memory.row_bytes);
  }
  int64_t staged(int64_t row) const {
    require_fit(within(row, memory.num_staged));
    return address_of(memory.staging, memory.staged[row]);
  }
};

// Where each position's row lies before anything is written: (plan.rows,) addresses, none 0.
void locate(const PlanView& plan, const Areas& areas, int64_t* sources) {
  std::fill_n(sources, plan.rows, 0);
  int64_t placed = 0;
  const auto place = [&](int64_t position, int64_t address) {
    require_fit(within(position, plan.rows) && sources[position] == 0);
    sources[position] = address;
    ++placed;
  };
  for (const int32_t* p = plan.hits.begin(); p != plan.hits.end(2); p += 2) {
    place(p[0], areas.slot(p[1]));
  }
  for (const int32_t* p = plan.victim_in.begin(); p != plan.victim_in.end(3); p += 3) {
    place(p[0], areas.cell(p[1]));
  }
  for (const int32_t* p = plan.fills.begin(); p != plan.fills.end(3); p += 3) {
    place(p[0], areas.staged(p[1]));
  }
  for (const int32_t* p = plan.copies.begin(); p != plan.copies.end(2); p += 2) {
    require_fit(within(p[1], plan.rows) && sources[p[1]] != 0);
    place(p[0], sources[p[1]]);
  }
  require_fit(placed == plan.rows);
}

// Rows to be moved: n addresses each.
struct Moves {
  int64_t* sources;
  int64_t* targets;
  std::size_t n = 0;

  void add(int64_t source, int64_t target) {
    sources[n] = source;
    targets[n++] = target;
  }
};

void collect_victims(const PlanView& plan, const Areas& areas, Moves& moves) {
  for (const int32_t* p = plan.victim_out.begin(); p != plan.victim_out.end(2); p += 2) {
    const int64_t from = p[0];
    moves.add(from >= 0 ? areas.slot(from) : areas.staged(-1 - from), areas.cell(p[1]));
  }
}

void collect_entries(const PlanView& plan, const Areas& areas, Moves& moves) {
  for (const int32_t* p = plan.fills.begin(); p != plan.fills.end(3); p += 3) {
    if (p[2] >= 0) moves.add(areas.staged(p[1]), areas.slot(p[2]));
  }
  for (const int32_t* p = plan.victim_in.begin(); p != plan.victim_in.end(3); p += 3) {
    if (p[2] >= 0) moves.add(areas.cell(p[1]), areas.slot(p[2]));
  }
}

}  // namespace

void move_rows(std::span<const int64_t> sources, std::span<const int64_t> targets,
               int64_t row_bytes, const ThreadPool& pool) {
  require(sources.size() == targets.size(), "move_rows: addresses of different number");
  const auto n = static_cast<int64_t>(sources.size());
  const int64_t reach = std::min(row_bytes, kPrefetchBytes);
  const int64_t grain = std::max<int64_t>(1, kShareBytes / (row_bytes + kLine));
  parallel_for(pool, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kDistance < end) {
        for (int64_t b = 0; b < reach; b += kLine) {
          __builtin_prefetch(pointer(sources[i + kDistance] + b), 0, 3);
          __builtin_prefetch(pointer(targets[i + kDistance] + b), 1, 3);
        }
      }
      std::memcpy(pointer(targets[i]), pointer(sources[i]), static_cast<size_t>(row_bytes));
    }
  });
}

void execute_plan(const PlanView& plan, const CacheMemory& memory, char* out,
                  const ThreadPool& pool, Isa isa, std::vector<int64_t>& scratch,
                  const RowCoding* coding) {
  const Areas areas{memory};
  const int64_t victims = plan.victim_out.rows;
  const int64_t entries = plan.fills.rows + plan.victim_in.rows;
  const std::size_t room = static_cast<std::size_t>(plan.rows + 2 * (victims + entries));
  if (scratch.size() < room) scratch.resize(room);
  int64_t* const sources = scratch.data();
  Moves out_of_slots{sources + plan.rows, sources + plan.rows + victims};
  Moves into_slots{out_of_slots.targets + victims, out_of_slots.targets + victims + entries};
  locate(plan, areas, sources);
  collect_victims(plan, areas, out_of_slots);
  collect_entries(plan, areas, into_slots);

  // An address is the id of a row in a table of rows that begin at every byte.
  const RowTable anywhere{nullptr, std::numeric_limits<int64_t>::max(), memory.row_bytes, 1};
  gather_rows(anywhere, sources, plan.rows, out, pool, isa, coding);
  for (const Moves& moves : {out_of_slots, into_slots}) {
    move_rows({moves.sources, moves.n}, {moves.targets, moves.n}, memory.row_bytes, pool);
  }
}

}  // namespace gnnsys
