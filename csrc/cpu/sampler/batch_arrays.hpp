#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "draws.hpp"
#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/sampler/sampler.hpp"

namespace gnnsys {

// The arrays of a batch in the making.

inline constexpr int64_t kMaxNodes = (int64_t{1} << 32) - (int64_t{1} << 24);  // that a map labels

// A pooled array that grows; a batch is about as large as the one before it, so `hint` saves moves.
struct GrowingArray {
  std::shared_ptr<char> area;
  int64_t capacity = 0;
  int64_t hint = 0;

  int64_t* data() const { return reinterpret_cast<int64_t*>(area.get()); }

  void reserve(BufferPool& pool, int64_t used, int64_t wanted) {
    if (wanted <= capacity) return;
    const int64_t next = std::max({wanted, hint, capacity + capacity / 2});
    std::shared_ptr<char> larger = pool.acquire(next * sizeof(int64_t));
    if (used) std::memcpy(larger.get(), area.get(), used * sizeof(int64_t));
    area = std::move(larger);
    capacity = next;
  }

  IdArray finish(int64_t size) {
    hint = size + size / 8;
    capacity = 0;
    return {std::move(area), size};
  }
};

// Gives the neighbours their places in the batch, new nodes the next ones; no branch depends on
// the data. map[v] - base is the place of node v if map[v] >= base. Returns the number of nodes
// afterwards; node[] needs one place more than that.
template <class Index>
int64_t relabel(const Index* neighbor, int64_t count, uint32_t* map, uint64_t base, int64_t nodes,
                int64_t* node, int64_t* row) {
  uint64_t next = base + static_cast<uint64_t>(nodes);
  for (int64_t e = 0; e < count; ++e) {
    if (e + kDistance < count) __builtin_prefetch(map + neighbor[e + kDistance], 1);
    const Index v = neighbor[e];
    const uint64_t known = map[v];
    // Whether a neighbour is new is as good as random, so it is arithmetic, not a branch: the empty
    // statement keeps the compiler from making it one again.
    uint64_t fresh = known < base;
    asm("" : "+r"(fresh));
    const uint64_t label = known + ((next - known) & (0 - fresh));
    map[v] = static_cast<uint32_t>(label);
    node[next - base] = v;
    next += fresh;
    row[e] = static_cast<int64_t>(label - base);
  }
  return static_cast<int64_t>(next - base);
}

}  // namespace gnnsys
