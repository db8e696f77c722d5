#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace gnnsys {

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

// What is known of a row's use is one word: its importance (below 2^16) while no batch in the
// window holds it; then kInWindow | the number of its last record.
constexpr uint32_t kInWindow = uint32_t{1} << 30;

struct Slot {
  uint32_t row : 31;
  uint32_t queued : 1;  // the row has an entry in the queue of those without a next use
  uint32_t use;         // of the row
};
static_assert(sizeof(Slot) == 8);

// Where each row is. A row outside the cache has its use in the directory; that of a cached one is
// in its slot, so that four bytes a row are enough.
class RowDirectory {
 public:
  RowDirectory(int64_t num_rows, int64_t capacity) : words_(num_rows), slots_(capacity + 1) {}

  // -1 for a row that is not cached.
  int32_t slot_of(int32_t row) const { return is_cached(row) ? number(words_[row]) : -1; }
  bool is_cached(int32_t row) const { return (words_[row] & kCached) != 0; }

  uint32_t& use(int32_t row) {
    uint32_t& word = words_[row];
    return *choose((word & kCached) != 0, &slot_or_first(word).use, &word);
  }
  uint32_t use(int32_t row) const { return const_cast<RowDirectory*>(this)->use(row); }

  Slot& slot(int32_t number) { return slots_[number]; }
  const Slot& slot(int32_t number) const { return slots_[number]; }

  // Brings a row into a slot that is free, or whose row left.
  void enter(int32_t row, int32_t slot, uint32_t use) {
    slots_[slot] = {static_cast<uint32_t>(row), 0, use};
    words_[row] = ~static_cast<uint32_t>(slot);
  }
  void leave(int32_t row) { words_[row] = use(row); }

  // Near, for the calls above: first the row's word, then its slot, if it has one and `needed`.
  void prefetch(int32_t row) const { __builtin_prefetch(&words_[row], 1); }
  void prefetch_slot(int32_t row, bool needed = true) const {
    const uint32_t word = words_[row];
    __builtin_prefetch(choose(needed, &slot_or_first(word), &slots_[0]), 1);
  }

  int64_t bytes() const { return words_.bytes() + slots_.bytes(); }

 private:
  static constexpr uint32_t kCached = uint32_t{1} << 31;
  static int32_t number(uint32_t word) { return static_cast<int32_t>(~word); }

  const Slot& slot_or_first(uint32_t word) const {
    return slots_[static_cast<int32_t>(~word & (0 - (word >> 31)))];
  }
  Slot& slot_or_first(uint32_t word) {
    return slots_[static_cast<int32_t>(~word & (0 - (word >> 31)))];
  }

  // Without a branch: half of them would be taken wrongly.
  template <class T>
  static T* choose(bool first, T* one, T* other) {
    const auto a = reinterpret_cast<uintptr_t>(one), b = reinterpret_cast<uintptr_t>(other);
    return reinterpret_cast<T*>(b ^ ((a ^ b) & (0 - static_cast<uintptr_t>(first))));
  }

  ZeroedArray<uint32_t> words_;  // (rows,): the use, or ~slot
  ZeroedArray<Slot> slots_;
};

}  // namespace gnnsys
