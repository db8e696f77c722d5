#pragma once

#include "../device.cuh"
#include "node_table.cuh"

// Which rows lie in which slots of a device cache, for batches that the GPU samples itself.
//
// Between batches, rows leave (remove_rows) and come (add_rows), one launch after the other. What
// leaves keeps its entry: the table is filled by 0xff and made anew by add_rows once half of its
// entries were given to a row. Nothing else uses the table during these launches.
//   table: id -> slot; ids: (n,) distinct; slots: (n,) i32.
namespace gnnsys::cuda {

// Rows that come, or whose slot changes. Ids below 0 are none: they are left out.
// Reads 12 bytes (8 for 32-bit ids) and an entry of 16 at random, and writes 16, a row.
template <class Id>
__global__ void add_rows(NodeTable table, const Id* __restrict__ ids, const i32* __restrict__ slots,
                         i64 n, u32* fault) {
  for (i64 i = thread_number(); i < n; i += thread_count()) {
    const i64 id = static_cast<i64>(ids[i]);
    if (id < 0) continue;
    const u64 home = table.home(static_cast<u64>(id));
    const u32 at = find_or_add(table, static_cast<u64>(id), home, peek(&table.entries[home].key));
    if (at == kNoEntry) {
      report(fault, kTableFull, id);
    } else {
      table.entries[at].value = static_cast<u64>(slots[i]);
    }
  }
}

// Rows that leave; ids that have no slot are left out.
// Reads sizeof(Id) bytes and an entry's 8 at random, and writes 8, a row.
template <class Id>
__global__ void remove_rows(NodeTable table, const Id* __restrict__ ids, i64 n) {
  for (i64 i = thread_number(); i < n; i += thread_count()) {
    if (ids[i] < 0) continue;
    const u64 id = static_cast<u64>(ids[i]);
    u64 at = table.home(id);
    for (u64 probe = 0; probe <= table.mask; ++probe, at = (at + 1) & table.mask) {
      const u64 held = peek(&table.entries[at].key);
      if (held == id) atomicExch(&table.entries[at].key, kRemovedKey);
      if (held == id || held == kNoKey) break;
    }
  }
}

// The slot of each id, -1 where it has none; ids may repeat.
//   slots: (n,) i32. Reads sizeof(Id) bytes and an entry of 16 at random, and writes 4, an id.
template <class Id>
__global__ void find_slots(NodeTable table, const Id* __restrict__ ids, i64 n,
                           i32* __restrict__ slots) {
  const i64 tile = static_cast<i64>(blockDim.x) * kFlight;
  for (i64 begin = blockIdx.x * tile + threadIdx.x; begin < n; begin += gridDim.x * tile) {
    i64 id[kFlight];
    u64 at[kFlight];
    Entry held[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      id[k] = i < n ? static_cast<i64>(ids[i]) : -1;
      at[k] = table.home(static_cast<u64>(id[k]));
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) held[k] = table.entries[at[k]];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      if (i >= n) continue;
      slots[i] = -1;
      for (u64 probe = 0; id[k] >= 0 && probe <= table.mask; ++probe) {
        if (held[k].key == static_cast<u64>(id[k])) slots[i] = static_cast<i32>(held[k].value);
        if (held[k].key == static_cast<u64>(id[k]) || held[k].key == kNoKey) break;
        at[k] = (at[k] + 1) & table.mask;
        held[k] = table.entries[at[k]];
      }
    }
  }
}

}  // namespace gnnsys::cuda
