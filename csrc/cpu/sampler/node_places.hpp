#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "gnnsys/buffer_pool.hpp"
#include "sampler/batch_arrays.hpp"

namespace gnnsys {

// The places of few of many nodes in a batch: an open-addressed map from node to place, half full
// at most.
class HashedPlaces {
 public:
  static int64_t bytes(int64_t nodes) {
    return static_cast<int64_t>(slots_for(nodes) * sizeof(Slot));
  }

  // Forgets all, for a batch that has at most so many places: labels are places above a base that
  // rises past all values in use.
  void open(int64_t places) {
    if (base_ + static_cast<uint64_t>(places) <= UINT32_MAX) return;
    std::fill(slots_.begin(), slots_.end(), Slot{});
    base_ = 1;
  }
  void close(int64_t nodes) { base_ += static_cast<uint64_t>(nodes); }

  // Makes room for so many nodes altogether.
  void reserve(int64_t nodes) {
    if (slots_.size() >= 2 * static_cast<std::size_t>(nodes)) return;
    std::vector<Slot> old(slots_for(nodes));
    old.swap(slots_);
    shift_ = 64 - std::countr_zero(slots_.size());
    for (const Slot& slot : old) {
      if (slot.label >= base_) slots_[find_slot(slot.node)] = slot;
    }
  }

  void insert(int64_t node, int64_t next) {
    Slot& slot = slots_[find_slot(static_cast<uint32_t>(node))];
    if (slot.label >= base_) return;
    slot = {static_cast<uint32_t>(node), static_cast<uint32_t>(base_ + next)};
  }

  int64_t find(int64_t node) const {
    if (slots_.empty()) return -1;
    const uint64_t label = slots_[find_slot(static_cast<uint32_t>(node))].label;
    return label < base_ ? -1 : static_cast<int64_t>(label - base_);
  }

  // As relabel() of batch_arrays.hpp.
  template <class Index>
  int64_t relabel(const Index* neighbor, int64_t count, int64_t nodes, int64_t* node,
                  int64_t* row) {
    Slot* const slots = slots_.data();
    const std::size_t last = slots_.size() - 1;
    const uint64_t base = base_;
    const int shift = shift_;
    uint64_t next = base + static_cast<uint64_t>(nodes);
    for (int64_t e = 0; e < count; ++e) {
      if (e + kDistance < count) {
        __builtin_prefetch(slots + home(static_cast<uint32_t>(neighbor[e + kDistance]), shift), 1);
      }
      const auto v = static_cast<uint32_t>(neighbor[e]);
      std::size_t at = home(v, shift);
      Slot slot = slots[at];
      while (slot.label >= base && slot.node != v) {
        at = (at + 1) & last;
        slot = slots[at];
      }
      uint64_t fresh = slot.label < base;
      asm("" : "+r"(fresh));  // no branch, as in relabel()
      const uint64_t label = slot.label + ((next - slot.label) & (0 - fresh));
      slots[at] = {v, static_cast<uint32_t>(label)};
      node[next - base] = neighbor[e];
      next += fresh;
      row[e] = static_cast<int64_t>(label - base);
    }
    return static_cast<int64_t>(next - base);
  }

 private:
  struct Slot {
    uint32_t node = 0;
    uint32_t label = 0;  // base + place; below the base it is free
  };

  static std::size_t slots_for(int64_t nodes) {
    return std::bit_ceil(std::max<std::size_t>(64, 2 * nodes));
  }

  static std::size_t home(uint32_t node, int shift) {
    return node * 0x9E3779B97F4A7C15ull >> shift;  // Fibonacci hashing
  }

  std::size_t find_slot(uint32_t node) const {
    std::size_t at = home(node, shift_);
    while (slots_[at].label >= base_ && slots_[at].node != node)
      at = (at + 1) & (slots_.size() - 1);
    return at;
  }

  std::vector<Slot> slots_;
  int shift_ = 0;
  uint64_t base_ = 1;
};

// The places in a batch of the nodes of one type: by an array over all nodes, or hashed where there
// are so many that a batch has but few of them.
class NodePlaces {
 public:
  // From so many nodes on they are hashed.
  static constexpr int64_t kHashed = int64_t{1} << 25;

  // About what is kept for batches of so many nodes.
  static int64_t bytes(int64_t num_nodes, int64_t batch_nodes) {
    if (num_nodes >= kHashed) return HashedPlaces::bytes(batch_nodes);
    return num_nodes * static_cast<int64_t>(sizeof(uint32_t));
  }

  // Forgets all, for a batch that has at most so many places, less than 2^32 - 1.
  void open(int64_t num_nodes, int64_t places) {
    hashed_ = num_nodes >= kHashed;
    if (hashed_) return table_.open(places);
    if (!area_) area_ = map_zeros(num_nodes * sizeof(uint32_t));
    if (base_ + static_cast<uint64_t>(places) > UINT32_MAX) {
      std::memset(area_.get(), 0, num_nodes * sizeof(uint32_t));
      base_ = 1;
    }
  }

  // After the batch: raising the base past all values in use empties the array without touching it.
  void close(int64_t nodes) {
    if (hashed_) return table_.close(nodes);
    base_ += static_cast<uint64_t>(nodes);
  }

  // Makes room for so many nodes altogether.
  void reserve(int64_t nodes) {
    if (hashed_) table_.reserve(nodes);
  }

  // The place of a node is `next`, unless it has one.
  void insert(int64_t node, int64_t next) {
    if (hashed_) return table_.insert(node, next);
    if (map()[node] < base_) map()[node] = static_cast<uint32_t>(base_ + next);
  }

  // The place of a node, or -1.
  int64_t find(int64_t node) const {
    if (hashed_) return table_.find(node);
    const uint64_t label = map()[node];
    return label < base_ ? -1 : static_cast<int64_t>(label - base_);
  }

  // Gives the neighbours their places, new nodes the next ones. Returns the number of nodes
  // afterwards; node[] needs one place more than that. reserve() has made room for all.
  template <class Index>
  int64_t relabel(const Index* neighbor, int64_t count, int64_t nodes, int64_t* node,
                  int64_t* row) {
    if (hashed_) return table_.relabel(neighbor, count, nodes, node, row);
    return gnnsys::relabel(neighbor, count, map(), base_, nodes, node, row);
  }

 private:
  uint32_t* map() const { return reinterpret_cast<uint32_t*>(area_.get()); }

  bool hashed_ = false;
  std::shared_ptr<char> area_;  // map()[v] - base_ is the place of node v if map()[v] >= base_
  uint64_t base_ = 1;
  HashedPlaces table_;
};

}  // namespace gnnsys
