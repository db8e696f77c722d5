#pragma once

#include <algorithm>
#include <functional>

namespace gnnsys {

// How many threads work on one call. The threads themselves belong to the process: a call borrows
// them from all that wait, so that tables, samplers and files have none of their own. They start
// when they are first needed and wait for work until the process ends; a forked child starts its
// own.
class ThreadPool {
 public:
  explicit ThreadPool(int threads = 1) : threads_(std::max(1, threads)) {}

  int size() const { return threads_; }

  // Calls body(0) here and body(1), body(2) … up to body(size() - 1) on borrowed threads; returns
  // when all have. Where other calls have borrowed so many that there are too few left, the last
  // ones are not called: a body must share out its work so that any number of calls completes it.
  // Of exceptions in bodies one is thrown on, once all have returned. Throws ResourceError where
  // a thread cannot be started; the body is not called then.
  void run(const std::function<void(int)>& body) const;

 private:
  int threads_;
};

// Hands out [0, n) in pieces of `grain` to the pool's threads: body(begin, end). After an exception
// no further pieces are begun.
void parallel_for(const ThreadPool& pool, long n, long grain,
                  const std::function<void(long, long)>& body);

}  // namespace gnnsys
