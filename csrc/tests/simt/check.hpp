#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "executor.hpp"

// EXPECT(condition, ...) ends the program with the place of a condition that does not hold, and a
// text as of printf.
#define EXPECT(condition, ...)                                             \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fputc('\n', stderr);                                            \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace simt {

using Random = std::mt19937_64;

inline std::int64_t draw(Random& random, std::int64_t first, std::int64_t last) {
  return std::uniform_int_distribution<std::int64_t>(first, last)(random);
}

// What a program of csrc/tests/cuda defines: its kernels against references. main() calls it in one
// schedule after another. `tiny`: ThreadSanitizer watches, whose fibers are slow.
void check(Random& random, bool tiny);

// What an Error says that f() throws; ends the program where it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  std::fprintf(stderr, "an error was expected\n");
  std::exit(1);
}

// An allocation of exactly so many bytes, so that AddressSanitizer sees what is read or written
// beside it.
template <class T>
class Exact {
 public:
  explicit Exact(std::size_t count, std::size_t offset = 0)
      : area_(std::malloc(count * sizeof(T) + offset)), count_(count) {
    data_ = reinterpret_cast<T*>(static_cast<char*>(area_) + offset);
    std::memset(area_, 0x5A, count * sizeof(T) + offset);
  }
  explicit Exact(const std::vector<T>& values) : Exact(values.size()) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  ~Exact() { std::free(area_); }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;

  T* data() { return data_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data_[i]; }
  std::vector<T> copy() const { return std::vector<T>(data_, data_ + count_); }

 private:
  void* area_;
  T* data_;
  std::size_t count_;
};

}  // namespace simt
