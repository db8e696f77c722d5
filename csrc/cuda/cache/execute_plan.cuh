#pragma once

#include "../device.cuh"
#include "../rows/move_rows.cuh"

// What one batch does to a cache, carried out as its plan says: the semantics are those of
// gnnsys/cache/execute_plan.hpp. Two launches a batch, in stream order, whatever it holds:
//
//   move_out_of_slots  the batch's rows to `out` from slots, peers' slots, cells and staging;
//                      victims to cells
//   move_into_slots    rows of the batch to the slots planned for them; rows that repeat in it
//
// The second overwrites what the first reads. Within one launch nothing that is written is read: a
// plan names no cell both to be read and to be filled. Peers may overwrite slots that the plan
// names once the first launch has ended.
//
// A plan that does not fit the batch or the memory leaves a fault and no slot changed, and nothing
// is written outside the memory; rows of `out` and of cells that it names may be written. While the
// fault stays, no later plan changes a slot either. As on the CPU, nothing tells that two rows are
// moved to one slot or cell; unlike there, a row copied from a copy is a fault.
namespace gnnsys::cuda {

// (rows, columns) int32 in C order.
struct List {
  const i32* data;
  i64 rows;
};

// The arrays of gnnsys.cache.plan.BatchPlan, and rows that other ranks hold.
struct Plan {
  i64 rows;         // positions of the batch
  List hits;        // position, slot
  List peers;       // position, peer, slot of that peer
  List victim_in;   // position, cell, slot or -1
  List fills;       // position, staging row, slot or -1
  List copies;      // position, first position that holds the same id
  List victim_out;  // slot, or -1 - staging row; cell
};

__device__ __forceinline__ bool within(i64 value, i64 end) { return value >= 0 && value < end; }

// Slots or cells.
struct Area {
  char* rows;
  i64 num_rows;
  i64 stride;  // bytes from row to row

  __device__ char* row(i64 i) const { return within(i, num_rows) ? rows + i * stride : nullptr; }
};

struct Staging {
  const char* rows;
  const i64* offsets;  // (num_rows,) bytes from `rows` to each
  i64 num_rows;

  __device__ const char* row(i64 i) const {
    return within(i, num_rows) ? rows + offsets[i] : nullptr;
  }
};

struct CacheMemory {
  Area slots;
  Area cells;
  Staging staging;
  const Area* peers;  // (num_peers,) slots of other ranks
  i64 num_peers;
  i64 words;  // of a stored row
};

// What a mark says of a position.
enum Mark : u32 {
  kGiven = 1,
  kCopied = 2,      // from another
  kCopiedFrom = 4,  // by others
};

// Calls f(entry) for the entries of a list, a thread each.
template <int kColumns, class F>
__device__ __forceinline__ void each_entry(const List& list, const F& f) {
  for (i64 i = thread_number(); i < list.rows; i += thread_count()) f(list.data + kColumns * i);
}

// Whether all numbers are within the memory and the plan gives each position once. The marks of a
// position are in one word, so that of two that contradict each other the later finds the earlier.
__device__ inline void check_plan(const Plan& plan, const CacheMemory& memory, u32* marks,
                                  u32* fault) {
  const auto fits = [&](i64 value, i64 end, Fault otherwise) {
    if (within(value, end)) return true;
    report(fault, otherwise, value);
    return false;
  };
  const auto mark = [&](i64 position, u32 as, u32 unless) {
    if (fits(position, plan.rows, kPlanPosition) &&
        (atomicOr(&marks[position], as) & unless) != 0) {
      report(fault, kPlanPosition, position);
    }
  };
  const auto fill = [&](i64 slot) {
    if (slot >= 0) fits(slot, memory.slots.num_rows, kPlanSlot);
  };
  each_entry<2>(plan.hits, [&](const i32* entry) {
    mark(entry[0], kGiven, kGiven);
    fits(entry[1], memory.slots.num_rows, kPlanSlot);
  });
  each_entry<3>(plan.peers, [&](const i32* entry) {
    mark(entry[0], kGiven, kGiven);
    if (fits(entry[1], memory.num_peers, kPlanPeer)) {
      fits(entry[2], memory.peers[entry[1]].num_rows, kPlanSlot);
    }
  });
  each_entry<3>(plan.victim_in, [&](const i32* entry) {
    mark(entry[0], kGiven, kGiven);
    fits(entry[1], memory.cells.num_rows, kPlanCell);
    fill(entry[2]);
  });
  each_entry<3>(plan.fills, [&](const i32* entry) {
    mark(entry[0], kGiven, kGiven);
    fits(entry[1], memory.staging.num_rows, kPlanStaged);
    fill(entry[2]);
  });
  each_entry<2>(plan.copies, [&](const i32* entry) {
    mark(entry[0], kGiven | kCopied, kGiven | kCopiedFrom);
    mark(entry[1], kCopiedFrom, kCopied);
  });
  each_entry<2>(plan.victim_out, [&](const i32* entry) {
    if (entry[0] < 0) fits(-1 - static_cast<i64>(entry[0]), memory.staging.num_rows, kPlanStaged);
    fill(entry[0]);
    fits(entry[1], memory.cells.num_rows, kPlanCell);
  });
  const i64 given =
      plan.hits.rows + plan.peers.rows + plan.victim_in.rows + plan.fills.rows + plan.copies.rows;
  if (thread_number() == 0 && given != plan.rows) report(fault, kPlanRows, given);
}

// The i-th of the hits, peers, victim_in and fills: its position, and where its row lies; null
// where that is outside the memory.
struct Source {
  i64 position;
  const char* row;
};

__device__ __forceinline__ Source find_source(const Plan& plan, const CacheMemory& memory, i64 i) {
  if (i < plan.hits.rows) {
    const i32* entry = plan.hits.data + 2 * i;
    return {entry[0], memory.slots.row(entry[1])};
  }
  i -= plan.hits.rows;
  if (i < plan.peers.rows) {
    const i32* entry = plan.peers.data + 3 * i;
    const bool known = within(entry[1], memory.num_peers);
    return {entry[0], known ? memory.peers[entry[1]].row(entry[2]) : nullptr};
  }
  i -= plan.peers.rows;
  if (i < plan.victim_in.rows) {
    const i32* entry = plan.victim_in.data + 3 * i;
    return {entry[0], memory.cells.row(entry[1])};
  }
  const i32* entry = plan.fills.data + 3 * (i - plan.victim_in.rows);
  return {entry[0], memory.staging.row(entry[1])};
}

// Moves the batch's rows to `out` and victims to cells.
//   out: (plan.rows, words) words as Out writes them; marks: at least (plan.rows,), zeros before
//   the first batch. Word divides all addresses, strides and offsets. kLanes, at least a row's
//   words, is 0 where they are more than a warp has lanes. Blocks of a multiple of 32 threads.
// Bytes a row: the row's read, those delivered written, 16 or 24 of the plan, a mark of 4 changed.
template <class Word, int kLanes, class Out>
__global__ void move_out_of_slots(Plan plan, CacheMemory memory, char* out, u32* marks,
                                  u32* fault) {
  check_plan(plan, memory, marks, fault);
  const i64 sources = plan.hits.rows + plan.peers.rows + plan.victim_in.rows + plan.fills.rows;
  move_rows<Word, kLanes, Out>(memory.words, sources, [&](i64 i) {
    const Source source = find_source(plan, memory, i);
    const bool fits = source.row != nullptr && within(source.position, plan.rows);
    return fits ? Move{source.row, out + source.position * memory.words * Out::kOutBytes} : Move{};
  });
  move_rows<Word, kLanes, Copy<Word>>(memory.words, plan.victim_out.rows, [&](i64 i) {
    const i32* entry = plan.victim_out.data + 2 * i;
    const i64 from = entry[0];
    const char* row = from >= 0 ? memory.slots.row(from) : memory.staging.row(-1 - from);
    return row != nullptr ? Move{row, memory.cells.row(entry[1])} : Move{};
  });
}

// Moves rows of the batch to the slots planned for them, repeats rows in `out`, and leaves the
// marks zero for the next batch. Arguments as before.
// Bytes a row: the row's read and written, 8 or 12 of the plan; 4 written for each position. What
// is delivered as it is stored is read from `out`, so that slow memory is read by the first launch
// alone.
template <class Word, int kLanes, class Out>
__global__ void move_into_slots(Plan plan, CacheMemory memory, char* out, u32* marks,
                                const u32* fault) {
  for (i64 i = thread_number(); i < plan.rows; i += thread_count()) marks[i] = 0;
  if (fault[0] != 0) return;
  const i64 out_bytes = memory.words * Out::kOutBytes;
  move_rows<Word, kLanes, Copy<Word>>(
      memory.words, plan.victim_in.rows + plan.fills.rows, [&](i64 i) {
        const bool from_cell = i < plan.victim_in.rows;
        const i32* entry = from_cell ? plan.victim_in.data + 3 * i
                                     : plan.fills.data + 3 * (i - plan.victim_in.rows);
        if (entry[2] < 0) return Move{};
        const char* row;
        if constexpr (Out::kSame) {
          row = out + entry[0] * out_bytes;
        } else {
          row = from_cell ? memory.cells.row(entry[1]) : memory.staging.row(entry[1]);
        }
        return Move{row, memory.slots.row(entry[2])};
      });

  using Group = typename Out::Group;
  constexpr int kGroups = Out::kOutBytes / sizeof(Group);  // of a word
  constexpr int kOutLanes = kLanes * kGroups <= kWarp ? kLanes * kGroups : 0;
  move_rows<Group, kOutLanes, Copy<Group>>(memory.words * kGroups, plan.copies.rows, [&](i64 i) {
    const i32* entry = plan.copies.data + 2 * i;
    return Move{out + entry[1] * out_bytes, out + entry[0] * out_bytes};
  });
}

}  // namespace gnnsys::cuda
