#pragma once

#include <cstdint>
#include <memory>
#include <span>
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
  int64_t window = 16;  // batches after the one planned whose ids are looked at
  // (num_rows,) how often each row will be needed; copied; null: all equal
  const uint16_t* importance = nullptr;
  int64_t victim_cells = 0;
  bool prefill = true;  // start with the most important rows, the smallest ids among equals
};

// Batches are numbered from 0; committed() <= planned() <= announced(). Calls must not overlap.
// They throw std::invalid_argument for batches of which they make no sense.
class CachePlanner {
 public:
  virtual ~CachePlanner() = default;

  // (k,) ids that slots 0 .. k - 1 hold before batch 0, ascending.
  virtual std::vector<int64_t> prefilled() const = 0;
  virtual int64_t announced() const = 0;
  virtual int64_t planned() const = 0;
  virtual int64_t committed() const = 0;

  // Takes the ids of batch announced(), and returns that number. Throws std::out_of_range for an id
  // outside; nothing is announced then.
  virtual int64_t announce(std::span<const int32_t> ids) = 0;
  virtual int64_t announce(std::span<const int64_t> ids) = 0;

  // The plan of batch planned(), which must be announced.
  virtual CachePlan plan() = 0;

  // Lets go of what undoing a plan needs. `batch` must be committed() and planned.
  virtual void commit(int64_t batch) = 0;

  // Takes back the announcements from `batch` on and undoes their plans; batch >= committed().
  virtual void retract(int64_t batch) = 0;

  // (ids,) the slot of each by the committed plans, -1 where it has none. Throws as announce().
  virtual std::vector<int32_t> committed_slots(std::span<const int64_t> ids) const = 0;

  // Memory in use.
  virtual int64_t state_bytes() const = 0;
};

// Throws std::invalid_argument for numbers that int32 does not hold or that are negative.
std::unique_ptr<CachePlanner> make_cache_planner(const CacheSetting& setting);

}  // namespace gnnsys
