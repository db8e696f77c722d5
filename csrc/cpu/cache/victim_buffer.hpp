#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "cache/lookahead.hpp"
#include "gnnsys/cache/planner.hpp"

namespace gnnsys {

// A row of the batch that is not in the cache.
struct Miss {
  int32_t row;
  int32_t position;
  int32_t next;
  int32_t cell;     // of the victim buffer, or -1
  int32_t slot;     // to fill, or -1
  int32_t staging;  // or -1 for a row that comes from its cell
  uint32_t use;     // after this batch
};

// A row that leaves its slot.
struct Victim {
  int32_t slot;
  int32_t row;
  int32_t next;
};

// Cells for rows that left the cache, or did not get in, and will be needed: who is in them, by
// batch of the next use in `look`, which also keeps their cells.
class VictimBuffer {
 public:
  VictimBuffer(int64_t cells, Lookahead& look) : cells_(cells), look_(look) { clear(); }

  // Frees all cells, for a window that is going to be reset.
  void clear();

  // Of a row of this use.
  int32_t cell_of(uint32_t use) const {
    return cells_ > 0 && (use & kInWindow) != 0 ? look_.cell(use) : kNoCell;
  }

  // Takes the rows out that wait for `batch`.
  void release(int64_t batch) {
    for (int32_t row : look_.batch(batch).buffered) release_row(row);
  }

  // Of the batch that is planned: rows that it reads from their cells stay there where they are not
  // placed in the cache and have a next use; the others compete for the cells that it does not
  // read.
  void save(const std::vector<Miss>& misses, const std::vector<Victim>& victims, CachePlan& plan);

  int64_t bytes() const { return static_cast<int64_t>(free_.size() * sizeof(int32_t)); }

 private:
  struct Candidate {
    int32_t row;
    int32_t next;
    int32_t source;  // slot, or -1 - staging row
  };

  static constexpr int32_t kPending = -2;  // the cell of a row that competes for one

  int32_t& cell(int32_t row) { return look_.cell(look_.directory.use(row)); }
  void release_row(int32_t row);
  void offer(int32_t row, int32_t next, int32_t source);
  void write_cells(CachePlan& plan);

  const int64_t cells_;
  Lookahead& look_;
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> free_;
  int64_t taken_ = 0;                  // cells
  std::vector<Candidate> candidates_;  // of the plan in the making
};

}  // namespace gnnsys
