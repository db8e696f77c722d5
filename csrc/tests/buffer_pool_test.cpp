// Pooled memory: what is kept, what is counted, what a forked child does with what it inherited.
#include "gnnsys/buffer_pool.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

void what_is_let_go_is_used_again() {
  const auto pool = BufferPool::create(64 * kMiB);
  std::shared_ptr<char> area = pool->acquire(5 * kMiB);
  const char* const at = area.get();
  CHECK(reinterpret_cast<std::uintptr_t>(at) % 64 == 0);
  CHECK(pool->bytes().outputs >= 5 * kMiB && pool->bytes().retained == 0);
  area.reset();
  CHECK(pool->bytes().outputs == 0 && pool->bytes().retained >= 5 * kMiB);
  area = pool->acquire(4 * kMiB);
  CHECK(area.get() == at);
  CHECK(pool->bytes().outputs >= 4 * kMiB && pool->bytes().staging == 0);
}

// A piece of a read takes no area of a batch's rows, for which another would then be mapped.
void uses_do_not_take_each_other_s() {
  const auto pool = BufferPool::create(64 * kMiB);
  pool->acquire(8 * kMiB).reset();
  const auto piece = pool->acquire(4 * kMiB, BufferPool::Use::staging);
  const auto rows = pool->acquire(8 * kMiB);
  const auto [outputs, staging, retained] = pool->bytes();
  CHECK(outputs == 8 * kMiB && staging == 4 * kMiB && retained == 0);
}

// However many areas of whatever sizes come back, no more than the bound is kept, the last of them.
void retention_is_bounded() {
  std::mt19937_64 random(3);
  const auto pool = BufferPool::create(20 * kMiB);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::shared_ptr<char>> areas;
    for (int i = 0; i < 30; ++i) {
      areas.push_back(pool->acquire(1 + random() % (3 * kMiB)));
      areas.back().get()[0] = 1;
    }
    areas.clear();
    CHECK(pool->bytes().retained <= 20 * kMiB && pool->bytes().retained > 10 * kMiB);
    CHECK(pool->bytes().outputs == 0);
  }
  // A user of another size is not shut out by what an earlier one left.
  std::shared_ptr<char> large = pool->acquire(16 * kMiB);
  const char* const at = large.get();
  large.reset();
  CHECK(pool->acquire(16 * kMiB).get() == at);
  large = pool->acquire(40 * kMiB);
  large.reset();  // larger than the bound: not kept, and nothing gives way to it
  CHECK(pool->bytes().retained >= 16 * kMiB);
  pool->set_retention(kMiB);
  CHECK(pool->bytes().retained <= kMiB);
  pool->set_retention(0);
  CHECK(pool->bytes().retained == 0);
}

void threads_share_a_pool() {
  const auto pool = BufferPool::create(8 * kMiB);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t));
      for (int round = 0; round < 200; ++round) {
        const std::size_t size = 1 + random() % (2 * kMiB);
        const auto area = pool->acquire(size);
        std::memset(area.get(), t, size);
        for (std::size_t i = 0; i < size; i += 4096) CHECK(area.get()[i] == t);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(pool->bytes().outputs == 0 && pool->bytes().retained <= 8 * kMiB);
}

void a_forked_child_lets_go_of_what_it_inherited() {
  auto pool = BufferPool::create(64 * kMiB);
  std::shared_ptr<char> area = pool->acquire(3 * kMiB);
  std::strcpy(area.get(), "mine");
  const pid_t child = fork();
  if (child == 0) {
    CHECK(std::strcmp(area.get(), "mine") == 0 && pool->bytes().outputs == 0);
    area.reset();
    CHECK(pool->bytes().retained == 0);
    pool->acquire(3 * kMiB).get()[0] = 1;
    CHECK(pool->bytes().retained >= 3 * kMiB);
    pool.reset();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(std::strcmp(area.get(), "mine") == 0 && pool->bytes().outputs >= 3 * kMiB);
}

}  // namespace

void test_buffer_pool() {
  what_is_let_go_is_used_again();
  uses_do_not_take_each_other_s();
  retention_is_bounded();
  threads_share_a_pool();
  a_forked_child_lets_go_of_what_it_inherited();
}

}  // namespace gnnsys::test
