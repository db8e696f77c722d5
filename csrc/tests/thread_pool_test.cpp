// Threads of the process: work shared out, exceptions, calls at once, a system without threads
// left.
#include "gnnsys/thread_pool.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "gnnsys/errors.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

constexpr long kItems = 10000;

#ifdef __SANITIZE_THREAD__
constexpr bool kForkedChildrenStartThreads = false;
#else
constexpr bool kForkedChildrenStartThreads = true;
#endif

// Every item once, whatever the number of threads.
void check_shares(const ThreadPool& pool) {
  std::vector<std::atomic<int>> seen(kItems);
  parallel_for(pool, kItems, 7, [&](long begin, long end) {
    for (long i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
  });
  for (const auto& count : seen) CHECK(count == 1);
}

void indices_differ() {
  const ThreadPool pool(5);
  std::vector<std::atomic<int>> calls(5);
  pool.run([&](int index) { ++calls[static_cast<std::size_t>(index)]; });
  CHECK(calls[0] == 1);
  for (const auto& count : calls) CHECK(count <= 1);
}

// One exception, after which nothing runs on; the threads work on.
void exceptions_come_back() {
  const ThreadPool pool(3);
  for (long failing = 0; failing < kItems; failing += 997) {
    std::atomic<int> running{0};
    const std::string text = message_of<std::runtime_error>([&] {
      parallel_for(pool, kItems, 1, [&](long begin, long) {
        ++running;
        const bool fails = begin == failing;
        --running;
        if (fails) throw std::runtime_error("piece " + std::to_string(begin));
      });
    });
    CHECK(text == "piece " + std::to_string(failing));
    CHECK(running == 0);
    check_shares(pool);
  }
  message_of<std::bad_alloc>([&] { pool.run([](int) { throw std::bad_alloc(); }); });
  check_shares(pool);
}

void calls_may_come_at_once_and_from_within() {
  std::vector<std::thread> callers;
  for (int t = 0; t < 12; ++t) {
    callers.emplace_back([t] {
      const ThreadPool pool(1 + t % 5);
      for (int round = 0; round < 30; ++round) check_shares(pool);
      pool.run([&](int) { check_shares(pool); });
    });
  }
  for (auto& caller : callers) caller.join();
}

// f() in a child, which must come to its end.
template <class F>
void in_child(const F& f) {
  const pid_t child = fork();
  if (child == 0) {
    f();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void a_forked_child_has_threads_of_its_own() {
  const ThreadPool pool(3);
  check_shares(pool);
  in_child([&] { check_shares(pool); });
  check_shares(pool);
}

// Where the system refuses threads: one error, and what needs none goes on.
void refused_threads_are_an_error() {
  in_child([] {
    const rlimit none{0, 0};
    CHECK(setrlimit(RLIMIT_NPROC, &none) == 0);
    if (geteuid() == 0) CHECK(setuid(65534) == 0);  // root is not limited
    const ThreadPool pool(64);
    const std::string text = message_of<ResourceError>([&] { check_shares(pool); });
    CHECK(contains(text, "63 threads were asked for and 0 could be started"));
    CHECK(contains(text, "pids.max"));
    check_shares(ThreadPool(1));
  });
}

}  // namespace

void test_thread_pool() {
  for (int threads : {1, 2, 3, 16}) check_shares(ThreadPool(threads));
  indices_differ();
  exceptions_come_back();
  calls_may_come_at_once_and_from_within();
  if (kForkedChildrenStartThreads) {
    a_forked_child_has_threads_of_its_own();
    refused_threads_are_an_error();
  }
}

}  // namespace gnnsys::test
