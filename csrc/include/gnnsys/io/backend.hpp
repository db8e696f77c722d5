#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace gnnsys {

struct DiskRead {
  int file;  // its place in the handles that the backend was made with
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

  // Queues a read; never more than the depth it was made for are under way.
  virtual void push(const DiskRead& read) = 0;

  // Begins what was queued, waits until at least `least` reads are done and appends all that are.
  // Throws std::system_error where no reads can be made at all.
  virtual void finish(int least, std::vector<DiskReadDone>& done) = 0;
};

// A pool of threads, one for each read in flight.
std::unique_ptr<ReadBackend> make_thread_backend(const std::vector<int>& handles, int depth);

// io_uring. Throws std::system_error where the kernel refuses it.
std::unique_ptr<ReadBackend> make_uring_backend(const std::vector<int>& handles, int depth);

// Whether io_uring was compiled in.
bool has_uring();

// The errno with which the kernel refuses a ring of that depth, or 0.
int find_uring_fault(int depth);

// The files of a table, each open twice: through the page cache and past it.
class FileHandles {
 public:
  // Duplicates the handles. Throws std::system_error.
  explicit FileHandles(const std::vector<int>& handles);
  ~FileHandles();
  FileHandles(const FileHandles&) = delete;
  FileHandles& operator=(const FileHandles&) = delete;

  // The handles for a backend: through the cache for each file, then past it, as there are.
  const std::vector<int>& all() const { return all_; }

  int size() const { return static_cast<int>(direct_.size()); }
  int cached(int file) const { return file; }
  int past_cache(int file) const { return size() + file; }
  bool direct(int file) const { return direct_[static_cast<std::size_t>(file)]; }
  void refuse_direct(int file) { direct_[static_cast<std::size_t>(file)] = false; }

 private:
  std::vector<int> all_;
  std::vector<std::atomic<bool>> direct_;
};

}  // namespace gnnsys
