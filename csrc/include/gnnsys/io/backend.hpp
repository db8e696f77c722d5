#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace gnnsys {

struct DiskRead {
  int handle;
  char* to;
  int64_t length;
  int64_t offset;
  uint64_t tag;
};

struct DiskReadDone {
  uint64_t tag;
  int64_t result;  // bytes, or -errno
};

// Makes reads at once, and says when they are done. Used by one thread, the one that made it.
class ReadBackend {
 public:
  virtual ~ReadBackend() = default;

  // Reads that it holds at once: those under way, and those that wait to take their place.
  virtual int capacity() const = 0;

  // Queues a read; there are never more than `capacity` that are not done.
  virtual void push(const DiskRead& read) = 0;

  // Begins what was queued, waits until at least `least` reads are done and appends all that are.
  // Throws std::system_error where no reads can be made at all.
  virtual void finish(int least, std::vector<DiskReadDone>& done) = 0;
};

// Makes what reads, on the thread that will use it, for at most `depth` reads under way.
using BackendFactory = std::function<std::unique_ptr<ReadBackend>(int depth)>;

// A pool of threads: one for each read in flight, but no more than 128, and as many reads that
// wait, so that a thread whose read is done begins another at once instead of sleeping. Where fewer
// can be started, those read, and take_notice tells of it. Throws ResourceError where there is
// none.
std::unique_ptr<ReadBackend> make_thread_backend(int depth);

// io_uring. Throws ResourceError where the kernel refuses it.
std::unique_ptr<ReadBackend> make_uring_backend(int depth);

// What a user should know of the backends made so far and was not told yet; else "".
std::string take_notice();

// Whether io_uring was compiled in.
bool has_uring();

// The errno with which the kernel refuses a ring of that depth, or 0.
int find_uring_fault(int depth);

// The files of a table, each open twice: through the page cache and past it.
class FileHandles {
 public:
  // Duplicates the handles. Throws ResourceError.
  explicit FileHandles(const std::vector<int>& handles);
  ~FileHandles();
  FileHandles(const FileHandles&) = delete;
  FileHandles& operator=(const FileHandles&) = delete;

  int size() const { return static_cast<int>(direct_.size()); }
  int cached(int file) const { return all_[static_cast<std::size_t>(file)]; }
  int past_cache(int file) const { return all_[static_cast<std::size_t>(size() + file)]; }
  bool direct(int file) const { return direct_[static_cast<std::size_t>(file)]; }
  void refuse_direct(int file) { direct_[static_cast<std::size_t>(file)] = false; }

 private:
  std::vector<int> all_;  // (2 * files) through the cache for each file, then past it
  std::vector<std::atomic<bool>> direct_;
};

}  // namespace gnnsys
