#include "io/queue.hpp"

#include <algorithm>
#include <cerrno>
#include <future>
#include <new>
#include <system_error>
#include <utility>

#include "gnnsys/errors.hpp"
#include "gnnsys/per_process.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kPage = 4096;
constexpr int kTries = 10000;  // of one read that the kernel is too busy for

}  // namespace

ReadQueue::ReadQueue(const BackendFactory& backend, int depth) {
  std::promise<void> ready;
  const auto work = [&, this] {
    prepare_to_throw();
    std::unique_ptr<ReadBackend> made;
    try {
      made = backend(depth);
      slots_.resize(static_cast<std::size_t>(made->capacity()));
      for (std::size_t slot = slots_.size(); slot-- > 0;) idle_.push_back(slot);
    } catch (...) {
      ready.set_exception(std::current_exception());
      return;
    }
    ready.set_value();
    serve(*made);
  };
  try {
    thread_ = std::thread(work);
  } catch (const std::system_error& error) {
    throw too_few_threads(1, 0, error.code().value());
  }
  try {
    ready.get_future().get();
  } catch (...) {
    thread_.join();
    throw;
  }
}

ReadQueue::~ReadQueue() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  added_.notify_one();
  thread_.join();
}

void ReadQueue::add(std::shared_ptr<ReadJob> job) {
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  added_.notify_one();
}

void ReadQueue::serve(ReadBackend& backend) {
  const int capacity = static_cast<int>(slots_.size());
  // Fewer, larger steps take less of a processor that trains meanwhile, and the disk still has
  // most of its queue.
  const int step = std::clamp(capacity / 8, 1, 64);
  std::vector<DiskReadDone> done;
  try {
    for (;;) {
      bool more = true;
      while (!idle_.empty() && more) more = begin(backend);
      const int in_flight = capacity - static_cast<int>(idle_.size());
      if (in_flight == 0) {
        std::unique_lock lock(mutex_);
        added_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
        if (stop_ && jobs_.empty()) return;
        continue;
      }
      done.clear();
      // With nothing left to begin, each read that ends may end a job.
      backend.finish(more ? std::min(step, in_flight) : 1, done);
      for (const DiskReadDone& each : done) handle(backend, each);
    }
  } catch (const std::system_error& error) {
    fail_all(error.code().value());
  } catch (const std::bad_alloc&) {
    fail_all(ENOMEM);
  }
}

// Begins one read; false where there is none to begin.
bool ReadQueue::begin(ReadBackend& backend) {
  for (;;) {
    if (!current_) {
      std::lock_guard lock(mutex_);
      if (jobs_.empty()) return false;
      current_ = std::move(jobs_.front());
      jobs_.pop_front();
    }
    ReadJob& job = *current_;
    const auto& requests = job.plan_.requests;
    if (job.next_ < requests.size() && !job.cancelled_ && !job.fault_) break;
    if (job.in_flight_ == 0) job.finish();
    current_ = nullptr;
  }
  const uint64_t tag = idle_.back();
  idle_.pop_back();
  const ReadRequest& request = current_->plan_.requests[current_->next_++];
  slots_[tag] = {current_, &request, 0, 0, current_->files_->direct(request.part)};
  ++current_->in_flight_;
  current_->totals_->requests.fetch_add(1, std::memory_order_relaxed);
  push(backend, tag);
  return true;
}

void ReadQueue::push(ReadBackend& backend, uint64_t tag) {
  const Slot& slot = slots_[tag];
  const ReadRequest& request = *slot.request;
  const FileHandles& files = *slot.job->files_;
  const int handle = slot.direct ? files.past_cache(request.part) : files.cached(request.part);
  backend.push({handle, slot.job->staging_.get() + request.staging + slot.done,
                request.length - slot.done, request.offset + slot.done, tag});
}

void ReadQueue::handle(ReadBackend& backend, const DiskReadDone& done) {
  Slot& slot = slots_[done.tag];
  const ReadRequest& request = *slot.request;
  const ReadFault here{request.part, request.offset + slot.done, static_cast<int>(-done.result)};
  const bool busy = done.result == -EINTR || done.result == -EAGAIN;
  if (busy && ++slot.tries < kTries) return push(backend, done.tag);
  if (slot.direct && (done.result == -EINVAL || done.result == -EOPNOTSUPP)) {
    slot.job->files_->refuse_direct(request.part);
    slot.direct = false;
    return push(backend, done.tag);
  }
  if (done.result <= 0) return end(done.tag, here);  // 0: the file ended before what was needed
  slot.done += done.result;
  slot.job->bytes_read_ += done.result;
  slot.job->totals_->bytes.fetch_add(done.result, std::memory_order_relaxed);
  if (slot.done >= request.need) return end(done.tag, std::nullopt);
  // Past the page cache reads start at whole pages.
  if (slot.done % kPage != 0) slot.direct = false;
  push(backend, done.tag);
}

void ReadQueue::end(uint64_t tag, std::optional<ReadFault> fault) {
  const ReadRequest* const request = slots_[tag].request;
  const std::shared_ptr<ReadJob> job = std::move(slots_[tag].job);
  idle_.push_back(tag);
  // Reads end in any order, but begin in that of the plan: of those that fail, the first in it has
  // begun in any case, and is the one that is told of.
  if (fault && (!job->fault_ || request < job->failed_)) {
    job->fault_ = fault;
    job->failed_ = request;
  }
  // Of the job that is current there may be more to read: it is ended where that would begin.
  if (--job->in_flight_ == 0 && job != current_) job->finish();
}

// No reads can be made any more. What is under way may still be written to: its memory stays, in
// the slots, until the backend is gone.
void ReadQueue::fail_all(int code) {
  broken_ = true;
  for (Slot& slot : slots_) {
    if (!slot.job) continue;
    if (!slot.job->fault_) slot.job->fault_ = {slot.request->part, slot.request->offset, code};
    slot.job->finish();
  }
  const auto fail = [code](ReadJob& job) {
    if (!job.fault_) job.fault_ = {0, 0, code};
    job.finish();
  };
  if (const auto job = std::move(current_)) fail(*job);
  std::unique_lock lock(mutex_);
  for (;;) {
    for (auto& job : jobs_) fail(*job);
    jobs_.clear();
    if (stop_) return;
    added_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
  }
}

namespace {

// The queues of one process. They belong to their readers.
struct Queues {
  struct Entry {
    BackendFactory backend;
    int depth;
    std::vector<dev_t> disks;
    std::weak_ptr<ReadQueue> queue;
  };
  std::mutex mutex;
  std::vector<Entry> all;
};

using Maker = std::unique_ptr<ReadBackend> (*)(int);

bool same(const BackendFactory& a, const BackendFactory& b) {
  const Maker* const one = a.target<Maker>();
  const Maker* const other = b.target<Maker>();
  return one && other && *one == *other;
}

}  // namespace

std::shared_ptr<ReadQueue> share_queue(const BackendFactory& backend, int depth,
                                       const std::vector<dev_t>& disks) {
  static auto& queues = *new PerProcess<Queues>;
  Queues& known = queues.get([] { return std::make_unique<Queues>(); });
  const std::lock_guard lock(known.mutex);
  std::erase_if(known.all, [](const auto& entry) { return entry.queue.expired(); });
  for (const auto& entry : known.all) {
    if (entry.depth != depth || entry.disks != disks || !same(entry.backend, backend)) continue;
    // Another thread may just be closing its last reader.
    if (auto queue = entry.queue.lock(); queue && !queue->broken()) return queue;
  }
  const int reads = depth * static_cast<int>(disks.size());
  auto queue = std::make_shared<ReadQueue>(backend, reads);
  known.all.push_back({backend, depth, disks, queue});
  return queue;
}

}  // namespace gnnsys
