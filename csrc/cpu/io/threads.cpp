#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "gnnsys/io/backend.hpp"

namespace gnnsys {
namespace {

class ThreadBackend final : public ReadBackend {
 public:
  ThreadBackend(const std::vector<int>& handles, int depth) : handles_(handles) {
    for (int i = 0; i < depth; ++i) threads_.emplace_back([this] { loop(); });
  }

  ~ThreadBackend() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    queued_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void push(const DiskRead& read) override {
    {
      std::lock_guard lock(mutex_);
      reads_.push_back(read);
    }
    queued_.notify_one();
  }

  void finish(int least, std::vector<DiskReadDone>& done) override {
    std::unique_lock lock(mutex_);
    least_ = static_cast<std::size_t>(least);
    finished_.wait(lock, [&] { return done_.size() >= least_; });
    done.insert(done.end(), done_.begin(), done_.end());
    done_.clear();
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      queued_.wait(lock, [&] { return stop_ || !reads_.empty(); });
      if (stop_) return;
      const DiskRead read = reads_.front();
      reads_.pop_front();
      lock.unlock();
      const ssize_t got = pread(handles_[static_cast<std::size_t>(read.file)], read.to,
                                static_cast<std::size_t>(read.length), read.offset);
      const int64_t result = got < 0 ? -errno : got;
      lock.lock();
      done_.push_back({read.tag, result});
      if (done_.size() >= least_) finished_.notify_one();
    }
  }

  const std::vector<int> handles_;
  std::mutex mutex_;
  std::condition_variable queued_;
  std::condition_variable finished_;
  std::deque<DiskRead> reads_;
  std::vector<DiskReadDone> done_;
  std::size_t least_ = 1;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadBackend> make_thread_backend(const std::vector<int>& handles, int depth) {
  return std::make_unique<ThreadBackend>(handles, depth);
}

}  // namespace gnnsys
