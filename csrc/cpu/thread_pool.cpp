#include "gnnsys/thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "gnnsys/errors.hpp"
#include "gnnsys/per_process.hpp"

namespace gnnsys {
namespace {

// A batch is a train of short parallel phases, a few microseconds apart: a thread that polls this
// long before it sleeps is there when the next one starts.
constexpr int kPolls = 4000;

// Calls of the largest size for which threads are made: loaders sample in one call and gather in
// another. Further ones at the same time make do with what is left.
constexpr int kCalls = 4;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void wait_while_equal(std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kPolls; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

// A thread and what it is to do; never destroyed.
class alignas(64) Worker {
 public:
  void start() {
    std::thread([this] { serve(); }).detach();
  }

  void begin(const std::function<void(int)>& body, int index) {
    body_ = &body;
    index_ = index;
    busy_.store(1, std::memory_order_release);
    busy_.notify_one();
  }

  // Waits until it is done; what its body threw, or null.
  std::exception_ptr finish() {
    wait_while_equal(busy_, 1);
    return std::exchange(error_, nullptr);
  }

  Worker* next = nullptr;  // of those that wait, or of those that one call has borrowed

 private:
  void serve() {
    prepare_to_throw();
    for (;;) {
      wait_while_equal(busy_, 0);
      try {
        (*body_)(index_);
      } catch (...) {
        error_ = std::current_exception();
      }
      busy_.store(0, std::memory_order_release);
      busy_.notify_one();
    }
  }

  std::atomic<uint32_t> busy_{0};
  int index_ = 0;
  const std::function<void(int)>* body_ = nullptr;
  std::exception_ptr error_;
};

// The threads of this process.
class Workers {
 public:
  // A list of up to `wanted`, of those that waited the shortest: they may poll still.
  Worker* borrow(int wanted) {
    const std::lock_guard lock(mutex_);
    Worker* borrowed = nullptr;
    for (int got = 0; got < wanted; ++got) {
      if (!waiting_ && made_ >= kCalls * wanted) break;
      if (!waiting_) {
        try {
          start_one();
        } catch (const std::system_error& error) {
          put_back(borrowed);
          throw too_few_threads(wanted, got, error.code().value());
        } catch (...) {
          put_back(borrowed);
          throw;
        }
      }
      Worker* const worker = std::exchange(waiting_, waiting_->next);
      worker->next = borrowed;
      borrowed = worker;
    }
    return borrowed;
  }

  void give_back(Worker* borrowed) {
    const std::lock_guard lock(mutex_);
    put_back(borrowed);
  }

 private:
  void start_one() {
    auto worker = std::make_unique<Worker>();
    worker->start();
    waiting_ = worker.release();
    ++made_;
  }

  void put_back(Worker* borrowed) {
    while (borrowed) {
      Worker* const worker = std::exchange(borrowed, borrowed->next);
      worker->next = waiting_;
      waiting_ = worker;
    }
  }

  std::mutex mutex_;
  Worker* waiting_ = nullptr;
  int made_ = 0;
};

Workers& workers() {
  static auto& all = *new PerProcess<Workers>;  // threads outlive static objects
  return all.get([] { return std::make_unique<Workers>(); });
}

}  // namespace

void ThreadPool::run(const std::function<void(int)>& body) const {
  if (threads_ == 1) return body(0);
  Workers& all = workers();
  Worker* const borrowed = all.borrow(threads_ - 1);
  int index = 0;
  for (Worker* worker = borrowed; worker; worker = worker->next) worker->begin(body, ++index);
  std::exception_ptr error;
  try {
    body(0);
  } catch (...) {
    error = std::current_exception();
  }
  for (Worker* worker = borrowed; worker; worker = worker->next) {
    std::exception_ptr other = worker->finish();
    if (!error) error = std::move(other);
  }
  all.give_back(borrowed);
  if (error) std::rethrow_exception(error);
}

void parallel_for(const ThreadPool& pool, long n, long grain,
                  const std::function<void(long, long)>& body) {
  if (n <= grain || pool.size() == 1) {
    if (n > 0) body(0, n);
    return;
  }
  std::atomic<long> next{0};
  pool.run([&](int) {
    try {
      for (;;) {
        const long begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= n) return;
        body(begin, std::min(n, begin + grain));
      }
    } catch (...) {
      next.store(n, std::memory_order_relaxed);
      throw;
    }
  });
}

}  // namespace gnnsys
