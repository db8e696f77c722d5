#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>

namespace gnnsys {

inline std::atomic<uint32_t> forks{0};  // between the first process and this one
inline const int forks_are_counted =
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });

// Differs from that of every process that this one was forked from. Unlike getpid(), no system
// call.
inline uint32_t process_number() { return forks.load(std::memory_order_relaxed); }

// A T of which each process has its own, made when it is first asked for. A forked child leaves its
// parent's alone, even at the end: threads that the child lacks may hold its locks.
template <class T>
class PerProcess {
 public:
  PerProcess() = default;
  ~PerProcess() {
    if (find()) delete entry_.load();
  }
  PerProcess(const PerProcess&) = delete;
  PerProcess& operator=(const PerProcess&) = delete;

  // This process's, or null where none was made.
  T* find() const {
    Entry* const known = entry_.load(std::memory_order_acquire);
    return known && known->owner == process_number() ? known->value.get() : nullptr;
  }

  // This process's. make() returns a std::unique_ptr<T>; of several threads that come here first,
  // one's is taken.
  template <class Make>
  T& get(const Make& make) {
    Entry* known = entry_.load(std::memory_order_acquire);
    if (known && known->owner == process_number()) return *known->value;
    std::unique_ptr<Entry> made(new Entry{process_number(), make()});
    if (entry_.compare_exchange_strong(known, made.get())) return *made.release()->value;
    return *known->value;
  }

 private:
  struct Entry {
    const uint32_t owner;
    const std::unique_ptr<T> value;
  };
  std::atomic<Entry*> entry_{nullptr};
};

}  // namespace gnnsys
