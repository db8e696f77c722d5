#pragma once

#include <functional>
#include <memory>
#include <mutex>

namespace gnnsys {

// A fixed set of threads that run one function at a time. The threads start with the first run, so
// that an object made before fork() costs nothing there; a forked child starts its own.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // Calls body(0) here and body(1) … body(size() - 1) on the pool's threads; returns when all have.
  // While another caller is inside run, only body(0) is called: a body must share out its work so
  // that any number of calls completes it. A body must not throw.
  void run(const std::function<void(int)>& body);

 private:
  struct Workers;
  int threads_;
  std::mutex busy_;
  std::unique_ptr<Workers> workers_;
};

// Hands out [0, n) in pieces of `grain` to the pool's threads: body(begin, end).
void parallel_for(ThreadPool& pool, long n, long grain,
                  const std::function<void(long, long)>& body);

}  // namespace gnnsys
