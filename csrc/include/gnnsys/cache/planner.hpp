#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace gnnsys {

// Plans of a software cache that knows the next batches; cache/plan.py says what a plan holds and
// tests/property/planner_reference.py defines it. The planner moves no rows: it knows ids, slots
// and cells only.

enum class CachePolicy { kHybrid, kLookahead, kHybridPvp, kStatic, kLru, kLfu, kSieve, kS3Fifo };

// Throws std::invalid_argument for a name that is none.
CachePolicy parse_cache_policy(const std::string& name);

struct CachePlan {
  int64_t batch = 0;
  int64_t rows = 0;
  std::vector<int32_t> hits;        // (h, 2): position, slot
  std::vector<int32_t> victim_in;   // (v, 3): position, cell, slot or -1
  std::vector<int32_t> fills;       // (f, 3): position, staging row, slot or -1
  std::vector<int32_t> copies;      // (c, 2): position, first position of the same id
  std::vector<int64_t> reads;       // (f,): ids, ascending
  std::vector<int32_t> victim_out;  // (o, 2): slot or -1 - staging row, cell
  int64_t drops = 0;
  int64_t evictions = 0;
};

struct CacheSetting {
  int64_t num_rows = 0;
  int64_t capacity = 0;  // slots; more than num_rows are not used
  CachePolicy policy = CachePolicy::kHybrid;
  int64_t window = 16;               // batches after the one planned whose ids are looked at
  const uint16_t* scores = nullptr;  // (num_rows,), must outlive the planner; null: all equal
  int64_t victim_cells = 0;
  bool prefill = true;  // start with the rows of the highest scores, the smallest ids among equals
};

// Batches are numbered from 0; committed() <= planned() <= announced(). Calls must not overlap.
class CachePlanner {
 public:
  // Throws std::invalid_argument for numbers that int32 does not hold or that are negative.
  explicit CachePlanner(const CacheSetting& setting);
  ~CachePlanner();

  // (k,) ids that slots 0 .. k - 1 hold before batch 0, ascending.
  std::vector<int64_t> prefilled() const;
  int64_t announced() const;
  int64_t planned() const;
  int64_t committed() const;

  // Takes the ids of batch announced(). Returns -1, or the first position whose id is outside;
  // nothing is announced then. Id is int32_t or int64_t.
  template <class Id>
  int64_t announce(const Id* ids, int64_t n);

  // The plan of batch planned(). Throws std::logic_error where it is not announced.
  CachePlan plan();

  // Lets go of what undoing a plan needs. `batch` must be committed() and planned.
  void commit(int64_t batch);

  // Takes back the announcements from `batch` on and undoes their plans; batch >= committed().
  void retract(int64_t batch);

  // The slot of each id by the committed plans, -1 where it has none. Returns as announce().
  template <class Id>
  int64_t committed_slots(const Id* ids, int64_t n, int32_t* slots) const;

  // Memory in use, without the scores.
  int64_t state_bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gnnsys
