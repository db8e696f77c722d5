#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <vector>

#include "cache/row_directory.hpp"

namespace gnnsys {

constexpr int32_t kNever = std::numeric_limits<int32_t>::max();  // a next use that is not known
constexpr int32_t kNoCell = -1;
constexpr int64_t kPlanDistance = 24;  // how far ahead of its use memory is prefetched

// One distinct id of a batch that was looked at and is not planned yet.
struct UseRecord {
  int32_t id;
  int32_t position;   // its first one in the batch
  int32_t following;  // the next batch that holds the id, or ~ the row's importance: none does
  uint32_t before;    // the row's use before this record

  int32_t next() const { return following < 0 ? kNever : following; }
};

struct CoveredBatch {
  std::vector<int32_t> ids;  // until the batch is looked at
  int64_t rows = 0;
  uint32_t first = 0;  // number of its first record
  int64_t count = 0;   // records
  std::vector<int32_t> copies;
  std::vector<int32_t> waiting;   // residents with this batch as next use (ordered policies)
  std::vector<int32_t> buffered;  // rows of the victim buffer with this batch as next use
};

// The batches that are announced and not planned, and who is used when in those that were looked
// at. Records are numbered on and on (modulo 2^30) and live in a ring.
class Lookahead {
 public:
  Lookahead(int64_t num_rows, int64_t capacity, bool with_cells)
      : directory(num_rows, capacity), ring_(1024), cells_(with_cells ? ring_.size() : 0) {}

  RowDirectory directory;

  int64_t first_batch() const { return first_batch_; }
  int64_t end_batch() const { return first_batch_ + static_cast<int64_t>(batches_.size()); }
  int64_t covered_end() const { return covered_; }
  CoveredBatch& batch(int64_t number) { return batches_[number - first_batch_]; }

  void push(std::vector<int32_t>&& ids);

  // Looks at the batches below `end`; known(row, batch) is called for each cached row that had no
  // next use.
  template <class F>
  void cover(int64_t end, F&& known) {
    for (end = std::min(end, end_batch()); covered_ < end; ++covered_) cover_one(known);
  }

  // Ends the life of the records of the first batch; they stay readable until the next call. The
  // rows' uses are the caller's to `retire`.
  void retire_records() { live_ += static_cast<uint32_t>(batches_.front().count); }
  void pop();

  // The use of a row after a record of the batch that is retired.
  static void retire(const UseRecord& record, uint32_t& use) {
    if (record.following < 0) use = ~static_cast<uint32_t>(record.following);
  }

  // Takes back the batches from `number` on, which are not planned.
  void drop_from(int64_t number);

  // Forgets all batches; the next one announced has the number `next`.
  void reset(int64_t next);

  const UseRecord& record(uint32_t number) const { return ring_[number & mask()]; }

  // The first batch that holds a row of this use, among those that were looked at and not retired,
  // or kNever.
  int32_t next_use(uint32_t use) const;

  uint16_t importance(uint32_t use) const {
    return static_cast<uint16_t>((use & kInWindow) != 0 ? ~record(use).following : use);
  }

  // The cell of a row of this use, which is in the window; kNoCell at first.
  int32_t& cell(uint32_t use) { return cells_[use & mask()]; }

  // Takes the `count` rows with the farthest next use, the larger ids first, out of the buckets of
  // the batches [first, last]; f(row, batch) is called for each. Returns how many were missing.
  template <class F>
  int64_t take_farthest(int64_t count, int64_t first, int64_t last,
                        std::vector<int32_t> CoveredBatch::* bucket, F&& f) {
    for (int64_t number = last; number >= first && count > 0; --number) {
      std::vector<int32_t>& rows = batch(number).*bucket;
      const int64_t taken = std::min<int64_t>(count, static_cast<int64_t>(rows.size()));
      if (taken < static_cast<int64_t>(rows.size())) {
        std::nth_element(rows.begin(), rows.begin() + taken, rows.end(), std::greater<>());
      }
      for (int64_t i = 0; i < taken; ++i) {
        if (i + 2 * kPlanDistance < taken) directory.prefetch(rows[i + 2 * kPlanDistance]);
        if (i + kPlanDistance < taken) directory.prefetch_slot(rows[i + kPlanDistance]);
        f(rows[i], static_cast<int32_t>(number));
      }
      rows.erase(rows.begin(), rows.begin() + taken);
      count -= taken;
    }
    return count;
  }

  int64_t bytes() const;

 private:
  static constexpr uint32_t kNumbers = kInWindow - 1;
  // So few that a record before a live one, which may be as many numbers back, is never mistaken
  // for a live one.
  static constexpr int64_t kMaxRecords = kInWindow / 2;

  uint32_t mask() const { return static_cast<uint32_t>(ring_.size() - 1); }

  bool is_live(uint32_t use) const {
    return (use & kInWindow) != 0 && ((use - live_) & kNumbers) < ((next_ - live_) & kNumbers);
  }

  void reserve_records(int64_t more);

  template <class F>
  void cover_one(F&& known) {
    CoveredBatch& batch = batches_[covered_ - first_batch_];
    const auto n = static_cast<int64_t>(batch.ids.size());
    const auto number = static_cast<int32_t>(covered_);
    reserve_records(n);
    batch.first = next_;
    for (int64_t i = 0; i < n; ++i) {
      if (i + 3 * kPlanDistance < n) directory.prefetch(batch.ids[i + 3 * kPlanDistance]);
      if (i + 2 * kPlanDistance < n) directory.prefetch_slot(batch.ids[i + 2 * kPlanDistance]);
      if (i + kPlanDistance < n) {
        __builtin_prefetch(&ring_[directory.use(batch.ids[i + kPlanDistance]) & mask()], 1);
      }
      const int32_t row = batch.ids[i];
      uint32_t& use = directory.use(row);
      auto following = static_cast<int32_t>(~use);
      if ((use & kInWindow) != 0) {
        UseRecord& last = ring_[use & mask()];
        if (((use - batch.first) & kNumbers) < ((next_ - batch.first) & kNumbers)) {
          batch.copies.push_back(static_cast<int32_t>(i));
          batch.copies.push_back(last.position);
          continue;
        }
        following = last.following;
        last.following = number;
      } else if (directory.is_cached(row)) {
        known(row, number);
      }
      ring_[next_ & mask()] = {row, static_cast<int32_t>(i), following, use};
      if (cells_.size() > 0) cells_[next_ & mask()] = (use & kInWindow) != 0 ? cell(use) : kNoCell;
      use = kInWindow | (next_ & kNumbers);
      ++next_;
    }
    batch.count = static_cast<int64_t>(next_ - batch.first);
    std::vector<int32_t>().swap(batch.ids);
  }

  int64_t first_batch_ = 0;
  int64_t covered_ = 0;
  std::deque<CoveredBatch> batches_;
  ZeroedArray<UseRecord> ring_;
  ZeroedArray<int32_t> cells_;  // of the victim buffer, beside each row's last record; or empty
  uint32_t live_ = 0;           // the oldest record that lives
  uint32_t next_ = 0;           // the number of the next record
};

}  // namespace gnnsys
