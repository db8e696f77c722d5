#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Defined by the build: this file is compiled without ThreadSanitizer, but linked with it.
#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// simt_switch(void** save, void* load): pushes what a call keeps, stores the stack's top at *save,
// takes `load` for it and pops.
extern "C" void simt_switch(void** save, void* load);
extern "C" void simt_start();

#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
.globl simt_start
.type simt_start, @function
simt_start:
  movq %r13, %rdi
  jmpq *%r12
.size simt_start, .-simt_start
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_switch, .-simt_switch
.globl simt_start
.type simt_start, %function
simt_start:
  mov x0, x20
  br x19
.size simt_start, .-simt_start
)");
#else
#error "fibers are switched on x86-64 and aarch64"
#endif

namespace simt {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_TSAN)
constexpr std::size_t kStackBytes = std::size_t{256} << 10;  // sanitizers spread what lies there
#else
constexpr std::size_t kStackBytes = std::size_t{64} << 10;
#endif

// A stack that simt_switch can take: simt_start is returned to and calls `entry(argument)`.
void* first_frame(char* end, void (*entry)(void*), void* argument) {
#if defined(__x86_64__)
  void** at = reinterpret_cast<void**>(end);
  *--at = nullptr;  // simt_start finds the stack as a function that was called does
  *--at = reinterpret_cast<void*>(&simt_start);
  *--at = nullptr;                         // rbp
  *--at = nullptr;                         // rbx
  *--at = reinterpret_cast<void*>(entry);  // r12
  *--at = argument;                        // r13
  *--at = nullptr;                         // r14
  *--at = nullptr;                         // r15
  return at;
#else
  void** at = reinterpret_cast<void**>(end - 160);
  std::memset(at, 0, 160);
  at[0] = reinterpret_cast<void*>(entry);         // x19
  at[1] = argument;                               // x20
  at[11] = reinterpret_cast<void*>(&simt_start);  // x30
  return at;
#endif
}

}  // namespace

Fiber::Fiber(void (*entry)(void*), void* argument) : entry_(entry), argument_(argument) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  size_ = page + kStackBytes;
  void* area = mmap(nullptr, size_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (area == MAP_FAILED) throw std::bad_alloc();
  area_ = static_cast<char*>(area);
  if (mprotect(area_, page, PROT_NONE) != 0) {
    munmap(area_, size_);
    throw std::bad_alloc();
  }
  bottom_ = area_ + page;
  stack_bytes_ = kStackBytes;
  top_ = first_frame(area_ + size_, &Fiber::begin, this);
#ifdef SIMT_TSAN
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef SIMT_TSAN
  if (area_ != nullptr) __tsan_destroy_fiber(tsan_);
#endif
  if (area_ != nullptr) munmap(area_, size_);
}

std::unique_ptr<Fiber> Fiber::of_this_thread() {
  std::unique_ptr<Fiber> fiber(new Fiber());
#ifdef SIMT_TSAN
  fiber->tsan_ = __tsan_get_current_fiber();
#endif
  return fiber;
}

#ifdef __SANITIZE_ADDRESS__
namespace {
thread_local const void** came_bottom;  // where to note the bounds of the stack that is left
thread_local std::size_t* came_bytes;
}  // namespace
#endif

void Fiber::begin(void* self) {
  auto* fiber = static_cast<Fiber*>(self);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, came_bottom, came_bytes);
#endif
  fiber->entry_(fiber->argument_);
  std::abort();
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  came_bottom = &from.bottom_;
  came_bytes = &from.stack_bytes_;
  __sanitizer_start_switch_fiber(&fake, to.bottom_, to.stack_bytes_);
#endif
#ifdef SIMT_TSAN
  __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch(&from.top_, to.top_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, came_bottom, came_bytes);
#endif
}

}  // namespace simt
