#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace gnnsys {

// Rows in the order in which they leave: the least important first, the larger id first among
// equals. One heap of ids for each importance: with many values a heap is short and lies in few
// cache lines.
class NeverQueue {
 public:
  explicit NeverQueue(bool ranked)
      : heaps_(ranked ? 1 << 16 : 1), words_(ranked ? 1 << 10 : 1), summary_(16) {}

  bool empty() const { return size_ == 0; }
  int64_t size() const { return size_; }

  void push(uint16_t importance, int32_t row) {
    std::vector<int32_t>& heap = heaps_[importance];
    if (heap.empty()) {
      words_[importance >> 6] |= uint64_t{1} << (importance & 63);
      summary_[importance >> 12] |= uint64_t{1} << (importance >> 6 & 63);
    }
    heap.push_back(row);
    std::push_heap(heap.begin(), heap.end());
    ++size_;
  }

  // Of a queue that is not empty.
  uint16_t top_importance() const {
    int at = 0;
    while (summary_[at] == 0) ++at;
    const int word = at << 6 | std::countr_zero(summary_[at]);
    return static_cast<uint16_t>(word << 6 | std::countr_zero(words_[word]));
  }
  int32_t top_row(uint16_t top_importance) const { return heaps_[top_importance].front(); }

  void pop(uint16_t top_importance) {
    std::vector<int32_t>& heap = heaps_[top_importance];
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    --size_;
    if (!heap.empty()) return;
    words_[top_importance >> 6] &= ~(uint64_t{1} << (top_importance & 63));
    if (words_[top_importance >> 6] == 0) {
      summary_[top_importance >> 12] &= ~(uint64_t{1} << (top_importance >> 6 & 63));
    }
  }

  void clear() {
    for (std::vector<int32_t>& heap : heaps_) heap.clear();
    std::fill(words_.begin(), words_.end(), 0);
    std::fill(summary_.begin(), summary_.end(), 0);
    size_ = 0;
  }

  int64_t bytes() const {
    std::size_t bytes = heaps_.size() * sizeof(heaps_[0]) + words_.size() * sizeof(words_[0]);
    for (const std::vector<int32_t>& heap : heaps_) bytes += heap.capacity() * sizeof(int32_t);
    return static_cast<int64_t>(bytes);
  }

 private:
  std::vector<std::vector<int32_t>> heaps_;
  std::vector<uint64_t> words_;    // bit s: heap s is not empty
  std::vector<uint64_t> summary_;  // bit w: word w is not 0
  int64_t size_ = 0;
};

}  // namespace gnnsys
