#pragma once

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
  ReadQueue(std::shared_ptr<FileHandles> files, const BackendFactory& backend, int depth);
  // Waits for the reads under way only.
  ~ReadQueue();

  void add(std::shared_ptr<ReadJob> job);

  struct Totals {
    std::atomic<int64_t> requests{0};
    std::atomic<int64_t> bytes{0};
  };
  const Totals& totals() const { return totals_; }

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

  const std::shared_ptr<FileHandles> files_;
  std::vector<Slot> slots_;
  std::vector<uint64_t> idle_;  // slots
  std::shared_ptr<ReadJob> current_;
  Totals totals_;

  std::mutex mutex_;
  std::condition_variable added_;
  std::deque<std::shared_ptr<ReadJob>> jobs_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace gnnsys
