#pragma once

#include <cstddef>
#include <memory>

namespace simt {

// A stack and a place in a program. Sanitizers are told of every switch; ThreadSanitizer takes
// fibers for threads that nothing orders.
class Fiber {
 public:
  // One that runs `entry(argument)` when it is switched to for the first time; it must never
  // return.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // That of the thread which calls.
  static std::unique_ptr<Fiber> of_this_thread();

  // Leaves `from`, which is running, for `to`.
  static void switch_to(Fiber& from, Fiber& to);

 private:
  Fiber() = default;
  static void begin(void* self);

  void* top_ = nullptr;   // of what the stack holds while the fiber does not run
  char* area_ = nullptr;  // a guard page and the stack; null for that of a thread
  std::size_t size_ = 0;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* tsan_ = nullptr;
  // AddressSanitizer's bounds of the stack; those of a thread are learnt at the first switch.
  const void* bottom_ = nullptr;
  std::size_t stack_bytes_ = 0;
};

}  // namespace simt
