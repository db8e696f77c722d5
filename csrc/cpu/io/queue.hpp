#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "gnnsys/io/backend.hpp"
#include "gnnsys/io/file_reader.hpp"

namespace gnnsys {

// A thread that makes the reads of jobs, in the order in which they were added, so that up to
// `depth` are always under way. Short reads are continued, interrupted ones made again; a file
// system that refuses O_DIRECT gets its reads through the page cache from then on.
class ReadQueue {
 public:
  // Throws ResourceError where the thread or what it reads with cannot be had.
  ReadQueue(const BackendFactory& backend, int depth);
  // Waits for the reads under way only.
  ~ReadQueue();

  void add(std::shared_ptr<ReadJob> job);

  // Whether no reads can be made any more.
  bool broken() const { return broken_; }

 private:
  struct Slot {
    std::shared_ptr<ReadJob> job;
    const ReadRequest* request;
    int64_t done;  // bytes
    int tries;
    bool direct;
  };

  void serve(ReadBackend& backend);
  bool begin(ReadBackend& backend);
  void push(ReadBackend& backend, uint64_t tag);
  void handle(ReadBackend& backend, const DiskReadDone& done);
  void end(uint64_t tag, std::optional<ReadFault> fault);
  void fail_all(int code);

  std::vector<Slot> slots_;     // as many as the backend holds
  std::vector<uint64_t> idle_;  // slots
  std::shared_ptr<ReadJob> current_;

  std::mutex mutex_;
  std::condition_variable added_;
  std::deque<std::shared_ptr<ReadJob>> jobs_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> broken_{false};
  std::thread thread_;
};

// The queue of this process for tables on these disks, made where there is none: `depth` reads
// under way on each disk. A backend that is not a plain function gets a queue of its own.
std::shared_ptr<ReadQueue> share_queue(const BackendFactory& backend, int depth,
                                       const std::vector<dev_t>& disks);

}  // namespace gnnsys
