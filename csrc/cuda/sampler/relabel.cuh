#pragma once

#include "../device.cuh"
#include "node_table.cuh"

// Places in a batch's node list: every node has that of its first occurrence, seeds first, then new
// nodes in the order of the edges that found them.
//
// The seeds are the list's beginning, also where some repeat: add_nodes with first_place 0. Then
// for the sources of each hop: add_nodes with the number of nodes so far as first_place, mark_new,
// a prefix sum of the marks, place_new_nodes, read_places. A table that is too small is made anew
// by add_nodes of the whole list with first_place 0.
//   table: node -> place; ids, sources: (n,); entry: (n,) u32, entries of the ids.
namespace gnnsys::cuda {

// Gives each id that has no place yet the lowest of first_place + i at which it stands. Where the
// table is full, or the id below 0, there is a fault and no entry. `entry` may be null.
// Reads sizeof(Id) bytes and an entry of 16 at random, and writes up to 20, an id.
template <class Id>
__global__ void add_nodes(NodeTable table, const Id* __restrict__ ids, i64 n, i64 first_place,
                          u32* __restrict__ entry, u32* fault) {
  const i64 tile = static_cast<i64>(blockDim.x) * kFlight;
  for (i64 begin = blockIdx.x * tile + threadIdx.x; begin < n; begin += gridDim.x * tile) {
    i64 id[kFlight];
    u64 home[kFlight], held[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      id[k] = i < n ? static_cast<i64>(ids[i]) : 0;
      home[k] = table.home(static_cast<u64>(id[k]));
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) held[k] = peek(&table.entries[home[k]].key);
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      if (i >= n) continue;
      u32 at = kNoEntry;
      if (id[k] < 0) {
        report(fault, kIdOutOfRange, id[k]);
      } else if (at = find_or_add(table, static_cast<u64>(id[k]), home[k], held[k]);
                 at == kNoEntry) {
        report(fault, kTableFull, id[k]);
      } else {
        // Hubs stand at many places: most find a lower one there, and leave it.
        u64* const place = &table.entries[at].value;
        const u64 own = static_cast<u64>(first_place + i);
        if (peek(place) > own) atomicMin(place, own);
      }
      if (entry != nullptr) entry[i] = at;
    }
  }
}

// Of a thread's items from `begin` on, a block apart: what their entries say, ~0 where there is
// none.
__device__ __forceinline__ void load_places(const NodeTable& table, const u32* entry, i64 n,
                                            i64 begin, u64 (&place)[kFlight]) {
  u32 at[kFlight];
#pragma unroll
  for (int k = 0; k < kFlight; ++k) {
    const i64 i = begin + k * static_cast<i64>(blockDim.x);
    at[k] = i < n ? entry[i] : kNoEntry;
  }
#pragma unroll
  for (int k = 0; k < kFlight; ++k) {
    place[k] = at[k] != kNoEntry ? table.entries[at[k]].value : ~0ull;
  }
}

// Which ids are the first of a node that has been new since first_place: is_new is 1 for them, 0
// for all others. Reads 4 bytes and 8 at random, and writes 1, an id.
__global__ void mark_new(NodeTable table, const u32* __restrict__ entry, i64 n, i64 first_place,
                         u8* __restrict__ is_new) {
  const i64 tile = static_cast<i64>(blockDim.x) * kFlight;
  for (i64 begin = blockIdx.x * tile + threadIdx.x; begin < n; begin += gridDim.x * tile) {
    u64 place[kFlight];
    load_places(table, entry, n, begin, place);
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      if (i < n) is_new[i] = place[k] == static_cast<u64>(first_place + i);
    }
  }
}

// Appends the new nodes to the list, and makes their places final.
//   new_before: (n + 1,) prefix sum of the marks; node: the list, first_place + new_before[n] long.
// Reads 16 bytes an id, and for a new node writes 16 and reads 4 + sizeof(Id).
template <class Id>
__global__ void place_new_nodes(NodeTable table, const Id* __restrict__ ids,
                                const u32* __restrict__ entry, const i64* __restrict__ new_before,
                                i64 n, i64 first_place, i64* __restrict__ node) {
  for (i64 i = thread_number(); i < n; i += thread_count()) {
    if (new_before[i] == new_before[i + 1]) continue;
    const i64 place = first_place + new_before[i];
    node[place] = static_cast<i64>(ids[i]);
    table.entries[entry[i]].value = static_cast<u64>(place);
  }
}

// The place of each id, -1 where it has no entry. Reads 4 bytes and 8 at random, and writes 8, an
// id.
__global__ void read_places(NodeTable table, const u32* __restrict__ entry, i64 n,
                            i64* __restrict__ row) {
  const i64 tile = static_cast<i64>(blockDim.x) * kFlight;
  for (i64 begin = blockIdx.x * tile + threadIdx.x; begin < n; begin += gridDim.x * tile) {
    u64 place[kFlight];
    load_places(table, entry, n, begin, place);
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      if (i < n) row[i] = static_cast<i64>(place[k]);
    }
  }
}

}  // namespace gnnsys::cuda
