#pragma once

#include <cstdint>
#include <vector>

#include "gnnsys/philox.hpp"

namespace gnnsys {

// The places of the nodes of disjoint trees: an open-addressed map from (tree, node) to place, half
// full at most.
class TreePlaces {
 public:
  static uint64_t key(int64_t tree, int64_t node) {
    return static_cast<uint64_t>(tree) << 32 | static_cast<uint64_t>(node);
  }

  // Forgets all, without touching the memory: places are stored above a base that rises.
  void clear() {
    base_ += used_;
    used_ = 0;
  }

  // Makes room for so many keys altogether.
  void reserve(int64_t keys) {
    std::size_t slots = slots_.empty() ? 64 : slots_.size();
    while (slots < 2 * static_cast<std::size_t>(keys)) slots *= 2;
    if (slots == slots_.size()) return;
    std::vector<Slot> old(slots);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.label >= base_) slots_[find(slot.key)] = slot;
    }
  }

  void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[mix64(key) & mask()], 1); }

  // The place of the key, which is `next` where it has none yet; reserve() has made room for it.
  int64_t insert(uint64_t key, int64_t next) {
    Slot& slot = slots_[find(key)];
    if (slot.label < base_) {
      slot = {key, base_ + static_cast<uint64_t>(next)};
      used_ = static_cast<uint64_t>(next) + 1;
    }
    return static_cast<int64_t>(slot.label - base_);
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint64_t label = 0;  // base + place; below the base it is free
  };

  std::size_t mask() const { return slots_.size() - 1; }

  std::size_t find(uint64_t key) const {
    std::size_t at = mix64(key) & mask();
    while (slots_[at].label >= base_ && slots_[at].key != key) at = (at + 1) & mask();
    return at;
  }

  std::vector<Slot> slots_;
  uint64_t base_ = 1;
  uint64_t used_ = 0;  // places up to here are in use
};

}  // namespace gnnsys
