#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "gnnsys/per_process.hpp"

namespace gnnsys {

// Memory that is used again once its consumer lets go of it: a gather into touched memory runs
// several times faster than into fresh pages. Areas of 2 MiB and more advise huge pages. A forked
// child may use and let go of what it inherited; its own areas are new ones.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  enum class Use { output, staging };

  struct Bytes {
    std::size_t outputs;   // handed out
    std::size_t staging;   // handed out for reads of files
    std::size_t retained;  // unused
  };

  static constexpr std::size_t kRetained = std::size_t{512} << 20;

  // Keeps at most `retain` unused bytes: those that were let go last.
  static std::shared_ptr<BufferPool> create(std::size_t retain);

  // The one of this process.
  static const std::shared_ptr<BufferPool>& shared();

  ~BufferPool();

  // At least `bytes` bytes at a 64-byte boundary, contents undefined. The area returns to the pool
  // with its last reference, which also keeps the pool alive. Throws std::bad_alloc.
  std::shared_ptr<char> acquire(std::size_t bytes, Use use = Use::output);

  // Of this process.
  Bytes bytes() const;

  void set_retention(std::size_t retain);

 private:
  class Areas;

  explicit BufferPool(std::size_t retain);
  Areas& areas();
  void release(char* area, std::size_t capacity, Use use);

  std::atomic<std::size_t> retain_;
  PerProcess<Areas> areas_;
};

// A zero-filled area that is mapped for its owner alone and unmapped with the last reference.
std::shared_ptr<char> map_zeros(std::size_t bytes);

}  // namespace gnnsys
