#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace gnnsys {

constexpr int32_t kNever = std::numeric_limits<int32_t>::max();  // a next use that is not known
constexpr int64_t kPlanDistance =
    24;  // how far ahead of their use directory entries are prefetched

// Zeroed memory that costs nothing until it is used, in huge pages where the kernel has them: a
// directory is read at random places.
template <class T>
class ZeroedArray {
 public:
  explicit ZeroedArray(int64_t size) : size_(size) {
    if (size == 0) return;
    data_.reset(static_cast<T*>(std::calloc(static_cast<std::size_t>(size), sizeof(T))));
    if (!data_) throw std::bad_alloc();
    constexpr uintptr_t kPage = uintptr_t{2} << 20;
    const auto first = (reinterpret_cast<uintptr_t>(data_.get()) + kPage - 1) & ~(kPage - 1);
    const auto last = reinterpret_cast<uintptr_t>(data_.get() + size) & ~(kPage - 1);
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }

  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  int64_t size_;
  std::unique_ptr<T, Free> data_;
};

// Where a row is, and the number of its last record.
struct DirectoryEntry {
  int32_t place;  // 0: nowhere, slot + 1, or -1 - cell
  uint32_t last;
};
static_assert(sizeof(DirectoryEntry) == 8);

// One distinct id of a batch that was looked at and is not planned yet.
struct UseRecord {
  int32_t id;
  int32_t position;   // its first one in the batch
  int32_t next;       // the next batch that holds the id, or kNever
  uint32_t previous;  // what the directory's `last` was before this record
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
// at. Records are numbered on and on (modulo 2^32) and live in a ring.
class Lookahead {
 public:
  explicit Lookahead(int64_t num_rows) : directory(num_rows), ring_(1024) {}

  ZeroedArray<DirectoryEntry> directory;

  int64_t first_batch() const { return first_batch_; }
  int64_t end_batch() const { return first_batch_ + static_cast<int64_t>(batches_.size()); }
  int64_t covered_end() const { return covered_; }
  CoveredBatch& batch(int64_t number) { return batches_[number - first_batch_]; }

  void push(std::vector<int32_t>&& ids);

  // Looks at the batches below `end`; known(row, batch) is called for each row that had no next use
  // and has a place.
  template <class F>
  void cover(int64_t end, F&& known) {
    for (end = std::min(end, end_batch()); covered_ < end; ++covered_) cover_one(known);
  }

  // Ends the life of the records of the first batch; they stay readable until the next call.
  void retire_records() { live_ += static_cast<uint32_t>(batches_.front().count); }
  void pop();

  // Takes back the batches from `number` on, which are not planned.
  void drop_from(int64_t number);

  // Forgets all batches; the next one announced has the number `next`.
  void reset(int64_t next);

  const UseRecord& record(uint32_t number) const { return ring_[number & mask()]; }

  // Whether a row is held by a batch that was looked at and not retired.
  bool is_used(int32_t row) const { return is_live(directory[row].last, row); }

  // The first such batch, or kNever.
  int32_t next_use(int32_t row) const;

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
        if (i + kPlanDistance < taken) __builtin_prefetch(&directory[rows[i + kPlanDistance]], 1);
        f(rows[i], static_cast<int32_t>(number));
      }
      rows.erase(rows.begin(), rows.begin() + taken);
      count -= taken;
    }
    return count;
  }

  int64_t bytes() const;

 private:
  uint32_t mask() const { return static_cast<uint32_t>(ring_.size() - 1); }

  // A `last` of long ago may have the number of a live record, but not of one of the same row.
  bool is_live(uint32_t number, int32_t row) const {
    return number - live_ < next_ - live_ && ring_[number & mask()].id == row;
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
      if (i + 2 * kPlanDistance < n) {
        __builtin_prefetch(&directory[batch.ids[i + 2 * kPlanDistance]], 1);
      }
      if (i + kPlanDistance < n) {
        __builtin_prefetch(&ring_[directory[batch.ids[i + kPlanDistance]].last & mask()], 1);
      }
      const int32_t row = batch.ids[i];
      DirectoryEntry& entry = directory[row];
      if (is_live(entry.last, row)) {
        UseRecord& previous = ring_[entry.last & mask()];
        if (entry.last - batch.first < next_ - batch.first) {
          batch.copies.push_back(static_cast<int32_t>(i));
          batch.copies.push_back(previous.position);
          continue;
        }
        previous.next = number;
      } else if (entry.place != 0) {
        known(row, number);
      }
      ring_[next_ & mask()] = {row, static_cast<int32_t>(i), kNever, entry.last};
      entry.last = next_++;
    }
    batch.count = static_cast<int64_t>(next_ - batch.first);
    std::vector<int32_t>().swap(batch.ids);
  }

  int64_t first_batch_ = 0;
  int64_t covered_ = 0;
  std::deque<CoveredBatch> batches_;
  std::vector<UseRecord> ring_;
  uint32_t live_ = 0;  // the oldest record that lives
  uint32_t next_ = 0;  // the number of the next record
};

}  // namespace gnnsys
