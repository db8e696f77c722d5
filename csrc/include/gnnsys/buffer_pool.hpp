#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace gnnsys {

// Output memory that is used again once its consumer lets go of it: a gather into touched memory
// runs several times faster than into fresh pages. Areas of 2 MiB and more advise huge pages.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // Keeps at most `retain` unused bytes; what comes back beyond that is unmapped.
  static std::shared_ptr<BufferPool> create(std::size_t retain);
  ~BufferPool();

  // At least `bytes` bytes at a 64-byte boundary, contents undefined. The area returns to the pool
  // with its last reference, which also keeps the pool alive. Throws std::bad_alloc.
  std::shared_ptr<char> acquire(std::size_t bytes);

  std::size_t retained() const;

 private:
  using FreeAreas = std::map<std::size_t, std::vector<char*>>;  // by capacity, none empty

  explicit BufferPool(std::size_t retain) : retain_(retain) {}
  char* take(FreeAreas::iterator found);
  void release(char* area, std::size_t capacity);

  const std::size_t retain_;
  mutable std::mutex mutex_;
  std::size_t retained_ = 0;
  FreeAreas free_;
};

// A zero-filled area that is mapped for its owner alone and unmapped with the last reference.
std::shared_ptr<char> map_zeros(std::size_t bytes);

}  // namespace gnnsys
