#pragma once

#include "../device.cuh"
#include "philox.cuh"

// A hash table in device memory from node ids to numbers, with linear probing. Its entries are
// filled by bytes of 0xff before its first use; no kernel lets it grow. Their number is a power of
// two up to 2^31, at least twice the ids that it will have held, so that searches stay short.
namespace gnnsys::cuda {

constexpr u64 kNoKey = ~0ull;           // of an entry that never held an id
constexpr u64 kRemovedKey = ~0ull - 1;  // of one whose id left: searches go on behind it
constexpr u32 kNoEntry = ~0u;

struct alignas(16) Entry {
  u64 key, value;
};

struct NodeTable {
  Entry* entries;  // (mask + 1)
  u64 mask;

  // Where the search for an id begins.
  __device__ u64 home(u64 id) const { return mix64(id) & mask; }
};

// The entry of an id, which is added where it is missing; kNoEntry where the table is full. The
// search begins at `at`, whose key was `held`.
__device__ inline u32 find_or_add(const NodeTable& table, u64 id, u64 at, u64 held) {
  for (u64 probe = 0; probe <= table.mask; ++probe) {
    if (held == kNoKey) held = atomicCAS(&table.entries[at].key, kNoKey, id);
    if (held == kNoKey || held == id) return static_cast<u32>(at);
    at = (at + 1) & table.mask;
    held = peek(&table.entries[at].key);
  }
  return kNoEntry;
}

}  // namespace gnnsys::cuda
