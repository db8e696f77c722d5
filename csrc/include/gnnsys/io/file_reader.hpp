#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/io/backend.hpp"
#include "gnnsys/per_process.hpp"
#include "gnnsys/thread_pool.hpp"

// Rows of a table that lies in files, read past the page cache, many at once.
namespace gnnsys {

// Consecutive rows of a table in a file.
struct FilePart {
  int handle;  // open for reading; a reader makes its own of it
  int64_t num_rows;
  int64_t offset;  // bytes before the first row
};

// A read that the disk makes: whole pages, at first.
struct ReadRequest {
  int part;
  int64_t offset;  // in the file
  int64_t length;
  int64_t need;     // bytes that must come; the last page of a file is short
  int64_t staging;  // where it goes
};

// The reads of some rows: every page that holds one of them once, no other.
struct ReadPlan {
  std::vector<ReadRequest> requests;
  std::vector<int64_t> offsets;  // where each row starts in the staging memory
  int64_t staging_bytes = 0;
  int64_t pages = 0;
};

// What went wrong: an errno, or 0 where the file ended too early.
struct ReadFault {
  int part;
  int64_t offset;
  int code;
};

// What one process has read of a table.
struct ReadTotals {
  std::atomic<int64_t> rows{0};
  std::atomic<int64_t> requests{0};
  std::atomic<int64_t> pages{0};
  std::atomic<int64_t> bytes{0};
  std::atomic<int64_t> nanoseconds_waited{0};
};

// Rows that are being read. Its memory returns to the pool with the last reference.
class ReadJob {
 public:
  ReadJob(ReadPlan plan, std::shared_ptr<char> staging, std::shared_ptr<FileHandles> files,
          std::shared_ptr<ReadTotals> totals);

  // Blocks until all reads are done, or one has failed and none is under way. Throws
  // std::logic_error in a process other than the one that started it.
  std::optional<ReadFault> wait();

  // Reads that were not begun are not made.
  void cancel() { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }

  const ReadPlan& plan() const { return plan_; }
  const char* data() const { return staging_.get(); }
  int64_t bytes_read() const { return bytes_read_; }

 private:
  friend class ReadQueue;
  void finish();

  const uint32_t owner_;  // number of the process
  const ReadPlan plan_;
  const std::shared_ptr<char> staging_;
  std::shared_ptr<FileHandles> files_;  // until it is done
  const std::shared_ptr<ReadTotals> totals_;
  std::atomic<bool> cancelled_{false};
  // Of the thread that reads, until the job is done.
  std::size_t next_ = 0;
  int64_t in_flight_ = 0;
  int64_t bytes_read_ = 0;
  std::optional<ReadFault> fault_;  // of the first read, in the order of the plan, that failed
  const ReadRequest* failed_ = nullptr;

  std::mutex mutex_;
  std::condition_variable finished_;
  bool done_ = false;
};

struct ReaderOptions {
  int depth = 128;                              // reads in flight at once, for each disk
  int threads = 1;                              // that copy rows
  int64_t largest_request = int64_t{64} << 10;  // bytes to which neighbouring pages are merged
};

// Reads rows of one table. Tables on the same disks that are read alike share one queue in each
// process, which is made when the first of them reads and goes with the last. All calls may come
// from several threads.
class FileReader {
 public:
  FileReader(std::vector<FilePart> parts, int64_t row_bytes, ReaderOptions options,
             BackendFactory backend);
  ~FileReader();  // of those that share a queue, the last waits for what is being read
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  // Begins to read rows, whose ids ascend strictly within the table; jobs are served in the order
  // in which they start. Throws std::invalid_argument for ids that do not, ResourceError where
  // nothing can be started that reads.
  std::shared_ptr<ReadJob> start(const int64_t* ids, int64_t n);

  struct Outcome {
    int64_t bad = -1;  // the least position of an id outside the table
    std::optional<ReadFault> fault;
  };

  // Copies row ids[i] to out + i * row_bytes. Id is int32_t or int64_t.
  template <class Id>
  Outcome gather(const Id* ids, int64_t n, char* out);

  // Copies rows [first, first + count) by large reads.
  std::optional<ReadFault> read_range(int64_t first, int64_t count, char* out);

  // Rows, requests, pages, bytes, nanoseconds waited: of this process.
  std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> counts() const;

  // Whether each file is read past the page cache; a file system may refuse it, at once or later.
  std::vector<bool> direct() const;

 private:
  struct Process;
  Process& process();
  std::shared_ptr<ReadJob> start_plan(ReadPlan plan, int64_t rows);
  ReadPlan plan_rows(const int64_t* ids, int64_t n) const;
  void plan_bytes(int part, int64_t begin, int64_t end, int64_t largest, ReadPlan& plan) const;
  void spread(ReadPlan& plan) const;

  std::vector<FilePart> parts_;
  std::vector<int64_t> first_row_;  // (parts + 1)
  std::vector<dev_t> devices_;      // the disks
  std::vector<int> device_;         // (parts) number of the disk of each
  const int64_t row_bytes_;
  const ReaderOptions options_;
  const BackendFactory backend_;
  int64_t num_rows_ = 0;
  std::shared_ptr<FileHandles> files_;
  ThreadPool threads_;
  PerProcess<Process> process_;
};

}  // namespace gnnsys
