#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gnnsys/cache/planner.hpp"

namespace gnnsys {

// What was written over since a point in time, so that it can be brought back.
class Journal {
 public:
  struct Entry {
    int32_t* place;
    int32_t value;
  };

  void set(int32_t& place, int32_t value) {
    entries_.push_back({&place, place});
    place = value;
  }
  std::vector<Entry> take() { return std::exchange(entries_, {}); }
  static void undo(const std::vector<Entry>& entries) {
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
      *entry->place = entry->value;
    }
  }

 private:
  std::vector<Entry> entries_;
};

// A cache that is fed row by row: LRU, LFU, SIEVE or S3-FIFO (papers: planner_queues.py of tests).
class CacheQueue {
 public:
  virtual ~CacheQueue() = default;

  // Uses a row; returns whether it was resident, and appends to `evicted` whom it displaced.
  virtual bool access(int32_t row, std::vector<int32_t>& evicted) = 0;

  // Starts with these rows, the least valuable first; not more than the capacity.
  virtual void fill(const std::vector<int32_t>& rows) = 0;

  virtual bool contains(int32_t row) const = 0;
  virtual int64_t bytes() const = 0;

  Journal journal;  // all changes go through it
};

// Null for the policies that are not fed row by row.
std::unique_ptr<CacheQueue> make_cache_queue(CachePolicy policy, int64_t num_rows,
                                             int64_t capacity);

}  // namespace gnnsys
