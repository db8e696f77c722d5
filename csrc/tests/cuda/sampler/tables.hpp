#pragma once

#include <cstring>
#include <vector>

#include "cuda/sampler/node_table.cuh"
#include "gnnsys/philox.hpp"
#include "simt/check.hpp"

// Hash tables for the checks, and ids that are hard for them.
namespace tables {

using namespace gnnsys::cuda;

class Table {
 public:
  explicit Table(std::size_t capacity) : entries_(capacity) {
    std::memset(static_cast<void*>(entries_.data()), 0xff, capacity * sizeof(Entry));
  }
  std::size_t size() const { return entries_.size(); }
  NodeTable view() { return {entries_.data(), size() - 1}; }

 private:
  simt::Exact<Entry> entries_;
};

inline std::size_t capacity_for(std::size_t ids) {
  std::size_t capacity = 2;
  while (capacity < 2 * ids) capacity *= 2;
  return capacity;
}

// Ids whose searches all begin at the last of `capacity` entries, so that they go on at the first.
inline std::vector<i64> colliding_ids(std::size_t count, u64 capacity) {
  std::vector<i64> ids;
  for (i64 id = i64{1} << 33; ids.size() < count; ++id) {
    if ((gnnsys::mix64(static_cast<u64>(id)) & (capacity - 1)) == capacity - 1) ids.push_back(id);
  }
  return ids;
}

}  // namespace tables
