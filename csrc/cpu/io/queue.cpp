#include "io/queue.hpp"

#include <algorithm>
#include <cerrno>
#include <future>
#include <system_error>
#include <utility>

namespace gnnsys {
namespace {

constexpr int64_t kPage = 4096;
constexpr int kTries = 10000;  // of one read that the kernel is too busy for

}  // namespace

ReadQueue::ReadQueue(std::shared_ptr<FileHandles> files, const BackendFactory& backend, int depth)
    : files_(std::move(files)), slots_(static_cast<std::size_t>(depth)) {
  for (std::size_t slot = slots_.size(); slot-- > 0;) idle_.push_back(slot);
  std::promise<void> ready;
  thread_ = std::thread([&, this] {
    std::unique_ptr<ReadBackend> made;
    try {
      made = backend(files_->all(), depth);
    } catch (...) {
      ready.set_exception(std::current_exception());
      return;
    }
    ready.set_value();
    serve(*made);
  });
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
  const int depth = static_cast<int>(slots_.size());
  // Fewer, larger steps take less of a processor that trains meanwhile, and the disk still has
  // most of its queue.
  const int step = std::clamp(depth / 8, 1, 16);
  std::vector<DiskReadDone> done;
  try {
    for (;;) {
      bool more = true;
      while (!idle_.empty() && more) more = begin(backend);
      const int in_flight = depth - static_cast<int>(idle_.size());
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
    if (stop_) job.cancel();
    const auto& requests = job.plan_.requests;
    if (job.next_ < requests.size() && !job.cancelled_ && !job.fault_) break;
    if (job.in_flight_ == 0) job.finish();
    current_ = nullptr;
  }
  const uint64_t tag = idle_.back();
  idle_.pop_back();
  const ReadRequest& request = current_->plan_.requests[current_->next_++];
  slots_[tag] = {current_, &request, 0, 0, files_->direct(request.part)};
  ++current_->in_flight_;
  totals_.requests.fetch_add(1, std::memory_order_relaxed);
  push(backend, tag);
  return true;
}

void ReadQueue::push(ReadBackend& backend, uint64_t tag) {
  const Slot& slot = slots_[tag];
  const ReadRequest& request = *slot.request;
  const int file = slot.direct ? files_->past_cache(request.part) : files_->cached(request.part);
  backend.push({file, slot.job->staging_.get() + request.staging + slot.done,
                request.length - slot.done, request.offset + slot.done, tag});
}

void ReadQueue::handle(ReadBackend& backend, const DiskReadDone& done) {
  Slot& slot = slots_[done.tag];
  const ReadRequest& request = *slot.request;
  const ReadFault here{request.part, request.offset + slot.done, static_cast<int>(-done.result)};
  const bool busy = done.result == -EINTR || done.result == -EAGAIN;
  if (busy && ++slot.tries < kTries) return push(backend, done.tag);
  if (slot.direct && (done.result == -EINVAL || done.result == -EOPNOTSUPP)) {
    files_->refuse_direct(request.part);
    slot.direct = false;
    return push(backend, done.tag);
  }
  if (done.result <= 0) return end(done.tag, here);  // 0: the file ended before what was needed
  slot.done += done.result;
  slot.job->bytes_read_ += done.result;
  totals_.bytes.fetch_add(done.result, std::memory_order_relaxed);
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
  for (Slot& slot : slots_) {
    if (!slot.job) continue;
    if (!slot.job->fault_) slot.job->fault_ = {slot.request->part, slot.request->offset, code};
    slot.job->finish();
  }
  std::unique_lock lock(mutex_);
  for (;;) {
    if (current_) jobs_.push_front(std::move(current_));
    for (auto& job : jobs_) {
      if (!job->fault_) job->fault_ = {0, 0, code};
      job->finish();
    }
    jobs_.clear();
    if (stop_) return;
    added_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
  }
}

}  // namespace gnnsys
