#include "gnnsys/thread_pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace gnnsys {
namespace {

// A batch is a train of short parallel phases, a few microseconds apart: a thread that polls this
// long before it sleeps is there when the next one starts.
constexpr int kPolls = 4000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class T>
void wait_while_equal(std::atomic<T>& value, T old) {
  for (int i = 0; i < kPolls; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::Workers {
  explicit Workers(int count) : owner(getpid()) {
    for (int i = 1; i <= count; ++i) threads.emplace_back([this, i] { loop(i); });
  }

  ~Workers() {
    stop = true;
    ticket.fetch_add(1, std::memory_order_release);
    ticket.notify_all();
    for (auto& thread : threads) thread.join();
  }

  void loop(int index) {
    for (uint32_t seen = 0;;) {
      wait_while_equal(ticket, seen);
      ++seen;
      if (stop) return;
      (*body)(index);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) pending.notify_one();
    }
  }

  void run(const std::function<void(int)>& work) {
    body = &work;
    pending.store(static_cast<int>(threads.size()), std::memory_order_relaxed);
    ticket.fetch_add(1, std::memory_order_release);
    ticket.notify_all();
    work(0);
    for (int left = pending.load(std::memory_order_acquire); left != 0;
         left = pending.load(std::memory_order_acquire)) {
      wait_while_equal(pending, left);
    }
  }

  const pid_t owner;
  bool stop = false;
  const std::function<void(int)>* body = nullptr;
  std::atomic<uint32_t> ticket{0};
  std::atomic<int> pending{0};
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int threads) : threads_(std::max(1, threads)) {}

ThreadPool::~ThreadPool() {
  // A forked child owns no threads to join: what it copied of the parent's is let go unjoined.
  if (workers_ && workers_->owner != getpid()) (void)workers_.release();
}

void ThreadPool::run(const std::function<void(int)>& body) {
  std::unique_lock lock(busy_, std::try_to_lock);
  if (threads_ == 1 || !lock.owns_lock()) {
    body(0);
    return;
  }
  if (workers_ && workers_->owner != getpid()) (void)workers_.release();
  if (!workers_) workers_ = std::make_unique<Workers>(threads_ - 1);
  workers_->run(body);
}

void parallel_for(ThreadPool& pool, long n, long grain,
                  const std::function<void(long, long)>& body) {
  if (n <= grain || pool.size() == 1) {
    if (n > 0) body(0, n);
    return;
  }
  std::atomic<long> next{0};
  pool.run([&](int) {
    for (;;) {
      const long begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      body(begin, std::min(n, begin + grain));
    }
  });
}

}  // namespace gnnsys
