#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <memory>

namespace gnnsys {

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
    return known && known->owner == getpid() ? known->value.get() : nullptr;
  }

  // This process's. make() returns a std::unique_ptr<T>; of several threads that come here first,
  // one's is taken.
  template <class Make>
  T& get(const Make& make) {
    Entry* known = entry_.load(std::memory_order_acquire);
    if (known && known->owner == getpid()) return *known->value;
    std::unique_ptr<Entry> made(new Entry{getpid(), make()});
    if (entry_.compare_exchange_strong(known, made.get())) return *made.release()->value;
    return *known->value;
  }

 private:
  struct Entry {
    const pid_t owner;
    const std::unique_ptr<T> value;
  };
  std::atomic<Entry*> entry_{nullptr};
};

}  // namespace gnnsys
