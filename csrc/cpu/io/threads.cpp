#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "gnnsys/errors.hpp"
#include "gnnsys/io/backend.hpp"

namespace gnnsys {
namespace {

constexpr int kMaxThreads = 128;  // as many reads saturate the disks that were measured

std::mutex notices_mutex;
std::set<std::string>& notices_told = *new std::set<std::string>;
std::string& notice = *new std::string;

void add_notice(std::string text) {
  const std::lock_guard lock(notices_mutex);
  if (notices_told.insert(text).second) notice += (notice.empty() ? "" : "; ") + text;
}

class ThreadBackend final : public ReadBackend {
 public:
  explicit ThreadBackend(int depth) {
    const int wanted = std::min(depth, kMaxThreads);
    done_.reserve(2 * static_cast<std::size_t>(wanted));  // what the threads add to it always fits
    threads_.reserve(static_cast<std::size_t>(wanted));
    int code = 0;
    try {
      for (int i = 0; i < wanted; ++i) threads_.emplace_back([this] { loop(); });
    } catch (const std::system_error& error) {
      code = error.code().value();
    } catch (const std::bad_alloc&) {
      code = ENOMEM;
    }
    const int made = static_cast<int>(threads_.size());
    if (made == 0) throw too_few_threads(wanted, made, code);
    if (made < depth) {
      add_notice("depth: " + std::to_string(depth) + ", but files are read by " +
                 std::to_string(made) + " threads (" +
                 (code ? std::strerror(code) : "no more are made") + ")");
    }
  }

  ~ThreadBackend() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    queued_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int capacity() const override { return 2 * static_cast<int>(threads_.size()); }

  void push(const DiskRead& read) override { pushed_.push_back(read); }

  void finish(int least, std::vector<DiskReadDone>& done) override {
    std::unique_lock lock(mutex_);
    reads_.insert(reads_.end(), pushed_.begin(), pushed_.end());
    for (std::size_t i = std::min(idle_, pushed_.size()); i > 0; --i) queued_.notify_one();
    pushed_.clear();
    least_ = static_cast<std::size_t>(least);
    finished_.wait(lock, [&] { return done_.size() >= least_; });
    done.insert(done.end(), done_.begin(), done_.end());
    done_.clear();
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      queued_.wait(lock, [&] { return stop_ || !reads_.empty(); });
      --idle_;
      if (stop_) return;
      const DiskRead read = reads_.front();
      reads_.pop_front();
      lock.unlock();
      const ssize_t got =
          pread(read.handle, read.to, static_cast<std::size_t>(read.length), read.offset);
      const int64_t result = got < 0 ? -errno : got;
      lock.lock();
      done_.push_back({read.tag, result});
      if (done_.size() == least_) finished_.notify_one();
    }
  }

  std::vector<DiskRead> pushed_;  // since the last `finish`

  std::mutex mutex_;
  std::condition_variable queued_;
  std::condition_variable finished_;
  std::deque<DiskRead> reads_;
  std::vector<DiskReadDone> done_;
  std::size_t least_ = 1;
  std::size_t idle_ = 0;  // threads that wait for reads
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadBackend> make_thread_backend(int depth) {
  return std::make_unique<ThreadBackend>(depth);
}

std::string take_notice() {
  const std::lock_guard lock(notices_mutex);
  return std::exchange(notice, {});
}

}  // namespace gnnsys
