#include "gnnsys/buffer_pool.hpp"

#include <sys/mman.h>

#include <bit>
#include <cstdint>
#include <iterator>
#include <new>

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
#ifdef MADV_HUGEPAGE
  madvise(first + head, capacity, MADV_HUGEPAGE);
#endif
  return first + head;
}

}  // namespace

std::shared_ptr<BufferPool> BufferPool::create(std::size_t retain) {
  return std::shared_ptr<BufferPool>(new BufferPool(retain));
}

BufferPool::~BufferPool() {
  for (auto& [capacity, areas] : free_) {
    for (char* area : areas) munmap(area, capacity);
  }
}

std::shared_ptr<char> BufferPool::acquire(std::size_t bytes) {
  std::size_t capacity = capacity_for(bytes);
  char* area = nullptr;
  char* outgrown = nullptr;
  std::size_t outgrown_capacity = 0;
  {
    std::lock_guard lock(mutex_);
    // Batches differ in size. What is up to twice too large serves; what is too small gives way to
    // what is mapped in its place. So the areas are never more than the outputs alive at once.
    auto larger = free_.lower_bound(capacity);
    if (larger != free_.end() && larger->first <= 2 * capacity) {
      capacity = larger->first;
      area = take(larger);
    } else if (larger != free_.begin() && std::prev(larger)->first >= capacity / 2) {
      outgrown_capacity = std::prev(larger)->first;
      outgrown = take(std::prev(larger));
    }
  }
  if (outgrown) munmap(outgrown, outgrown_capacity);
  if (!area) area = map_area(capacity);
  // Under AddressSanitizer, what was not asked for is an error to touch.
  ASAN_POISON_MEMORY_REGION(area + bytes, capacity - bytes);
  return {area, [pool = shared_from_this(), capacity](char* p) { pool->release(p, capacity); }};
}

char* BufferPool::take(FreeAreas::iterator found) {
  char* const area = found->second.back();
  found->second.pop_back();
  retained_ -= found->first;
  if (found->second.empty()) free_.erase(found);
  return area;
}

std::shared_ptr<char> map_zeros(std::size_t bytes) {
  const std::size_t capacity = (bytes + kPage) / kPage * kPage;
  return {map_area(capacity), [capacity](char* p) { munmap(p, capacity); }};
}

std::size_t BufferPool::retained() const {
  std::lock_guard lock(mutex_);
  return retained_;
}

void BufferPool::release(char* area, std::size_t capacity) {
  ASAN_UNPOISON_MEMORY_REGION(area, capacity);
  {
    std::lock_guard lock(mutex_);
    if (retained_ + capacity <= retain_) {
      free_[capacity].push_back(area);
      retained_ += capacity;
      return;
    }
  }
  munmap(area, capacity);
}

}  // namespace gnnsys
