#include "gnnsys/buffer_pool.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace gnnsys {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPage = 4096;

// Four capacities an octave: little memory lost to rounding, few distinct sizes to keep.
std::size_t capacity_for(std::size_t bytes) {
  if (bytes <= kPage) return kPage;
  const std::size_t step = std::bit_floor(bytes - 1) / 4;
  const std::size_t rounded = (bytes + step - 1) / step * step;
  return (rounded + kPage - 1) / kPage * kPage;
}

char* map_area(std::size_t capacity) {
  const bool huge = capacity >= kHugePage;
  const std::size_t slack = huge ? kHugePage : 0;
  void* area =
      mmap(nullptr, capacity + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) throw std::bad_alloc();
  if (!huge) return static_cast<char*>(area);
  char* const first = static_cast<char*>(area);
  const auto address = reinterpret_cast<std::uintptr_t>(area);
  const std::size_t head = (kHugePage - address % kHugePage) % kHugePage;
  if (head) munmap(first, head);
  if (slack > head) munmap(first + head + capacity, slack - head);
  madvise(first + head, capacity, MADV_HUGEPAGE);
  return first + head;
}

}  // namespace

// The unused areas of one process, and how many bytes are in use.
class BufferPool::Areas {
 public:
  ~Areas() {
    for (auto& [key, area] : free_) munmap(area.start, key.second);
  }

  // An unused area of at least `capacity` bytes, and how large it is; null where there is none.
  char* take(std::size_t& capacity, Use use) {
    char* outgrown = nullptr;
    std::size_t outgrown_capacity = 0;
    {
      const std::lock_guard lock(mutex_);
      // Batches differ in size. What is up to twice too large serves; what is too small gives way
      // to what is mapped in its place. So areas of a use are never more than those in use at once.
      // Each use has its own: a piece of a read would lie in an area for the rows of a batch, for
      // which another is then mapped.
      const auto larger = free_.lower_bound({use, capacity});
      if (larger != free_.end() && larger->first <= Key{use, 2 * capacity}) {
        capacity = larger->first.second;
        return remove(larger);
      }
      if (larger != free_.begin() && std::prev(larger)->first >= Key{use, capacity / 2}) {
        outgrown_capacity = std::prev(larger)->first.second;
        outgrown = remove(std::prev(larger));
      }
    }
    if (outgrown) munmap(outgrown, outgrown_capacity);
    return nullptr;
  }

  // False where there is no memory to keep account of it.
  bool put(char* start, std::size_t capacity, Use use) {
    const std::lock_guard lock(mutex_);
    try {
      const Key key{use, capacity};
      free_.emplace_hint(free_.lower_bound(key), key, Area{start, clock_++});
    } catch (const std::bad_alloc&) {
      return false;
    }
    retained_ += capacity;
    return true;
  }

  // Unmaps what was let go first, until at most `retain` bytes are left.
  void trim(std::size_t retain) {
    for (;;) {
      std::size_t capacity;
      char* start;
      {
        const std::lock_guard lock(mutex_);
        if (retained_ <= retain) return;
        const auto oldest = std::min_element(
            free_.begin(), free_.end(),
            [](const auto& a, const auto& b) { return a.second.since < b.second.since; });
        capacity = oldest->first.second;
        start = remove(oldest);
      }
      munmap(start, capacity);
    }
  }

  std::size_t retained() {
    const std::lock_guard lock(mutex_);
    return retained_;
  }

  std::atomic<std::size_t> in_use[2]{};  // bytes, by use

 private:
  struct Area {
    char* start;
    std::uint64_t since;
  };
  using Key = std::pair<Use, std::size_t>;  // what for, and the capacity
  using FreeAreas = std::multimap<Key, Area>;

  char* remove(FreeAreas::iterator found) {
    char* const start = found->second.start;
    retained_ -= found->first.second;
    free_.erase(found);
    return start;
  }

  std::mutex mutex_;
  std::size_t retained_ = 0;
  std::uint64_t clock_ = 0;
  FreeAreas free_;
};

BufferPool::BufferPool(std::size_t retain) : retain_(retain) {}

BufferPool::~BufferPool() = default;

std::shared_ptr<BufferPool> BufferPool::create(std::size_t retain) {
  return std::shared_ptr<BufferPool>(new BufferPool(retain));
}

const std::shared_ptr<BufferPool>& BufferPool::shared() {
  static auto& pool = *new auto(create(kRetained));  // threads let go of areas until the very end
  return pool;
}

BufferPool::Areas& BufferPool::areas() {
  return areas_.get([] { return std::make_unique<Areas>(); });
}

std::shared_ptr<char> BufferPool::acquire(std::size_t bytes, Use use) {
  Areas& mine = areas();
  std::size_t capacity = capacity_for(bytes);
  char* area = mine.take(capacity, use);
  if (!area) area = map_area(capacity);
  mine.in_use[static_cast<int>(use)] += capacity;
  // Under AddressSanitizer, what was not asked for is an error to touch.
  ASAN_POISON_MEMORY_REGION(area + bytes, capacity - bytes);
  return {area, [pool = shared_from_this(), capacity, use, owner = process_number()](char* p) {
            ASAN_UNPOISON_MEMORY_REGION(p, capacity);
            if (owner == process_number()) {
              pool->release(p, capacity, use);
            } else {
              munmap(p, capacity);  // inherited, and so no area of this process
            }
          }};
}

void BufferPool::release(char* area, std::size_t capacity, Use use) {
  Areas& mine = areas();
  const std::size_t retain = retain_;
  mine.in_use[static_cast<int>(use)] -= capacity;
  if (capacity > retain || !mine.put(area, capacity, use)) {
    munmap(area, capacity);
  } else {
    mine.trim(retain);
  }
}

void BufferPool::set_retention(std::size_t retain) {
  retain_ = retain;
  areas().trim(retain);
}

BufferPool::Bytes BufferPool::bytes() const {
  Areas* const mine = areas_.find();
  if (!mine) return {0, 0, 0};
  return {mine->in_use[0], mine->in_use[1], mine->retained()};
}

std::shared_ptr<char> map_zeros(std::size_t bytes) {
  const std::size_t capacity = (bytes + kPage) / kPage * kPage;
  return {map_area(capacity), [capacity](char* p) { munmap(p, capacity); }};
}

}  // namespace gnnsys
