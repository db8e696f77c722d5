#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "gnnsys/thread_pool.hpp"
#include "sampler/expand.hpp"

namespace gnnsys {

// Shares out chunks of work whose results are joined in order.
//
// Threads call produce(thread, begin, end, buffer) for the pieces of [0, n) in any order. Whoever
// finishes one calls join(begin, end, buffer) for those whose turn has come, one thread at a time
// and ascending, so that what is joined does not depend on the threads. Buffers are used again. The
// first exception of the lowest piece is thrown on.
template <class Produce, class Join>
void produce_in_order(const ThreadPool& threads, int64_t n, int64_t grain,
                      std::vector<std::unique_ptr<EdgeBuffer>>& spare, const Produce& produce,
                      const Join& join) {
  struct Piece {
    std::unique_ptr<EdgeBuffer> buffer;
    std::exception_ptr error;
    bool ready = false;
  };
  const int64_t count = (n + grain - 1) / grain;
  std::vector<Piece> pieces(count);
  spare.reserve(spare.size() + count);  // so that buffers come back without an allocation
  std::mutex mutex;                     // guards all that follows
  int64_t started = 0, joined = 0;
  bool joining = false;
  std::exception_ptr error;

  auto join_ready = [&](std::unique_lock<std::mutex>& lock) {
    if (joining) return;
    joining = true;
    while (!error && joined < count && pieces[joined].ready) {
      Piece& piece = pieces[joined];
      lock.unlock();
      if (!piece.error) {
        try {
          join(joined * grain, std::min(n, (joined + 1) * grain), *piece.buffer);
        } catch (...) {
          piece.error = std::current_exception();
        }
      }
      lock.lock();
      error = piece.error;
      spare.push_back(std::move(piece.buffer));
      ++joined;
    }
    joining = false;
  };

  auto work = [&](int thread) {
    std::unique_lock lock(mutex);
    while (!error && started < count) {
      Piece& piece = pieces[started];
      const int64_t begin = started++ * grain;
      if (!spare.empty()) {
        piece.buffer = std::move(spare.back());
        spare.pop_back();
      }
      lock.unlock();
      try {
        if (!piece.buffer) piece.buffer = std::make_unique<EdgeBuffer>();
        piece.buffer->size = 0;
        produce(thread, begin, std::min(n, begin + grain), *piece.buffer);
      } catch (...) {
        piece.error = std::current_exception();
      }
      lock.lock();
      piece.ready = true;
      join_ready(lock);
    }
  };
  if (count > 1) {
    threads.run(work);
  } else {
    work(0);
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace gnnsys
