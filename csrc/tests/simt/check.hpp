#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __CUDACC__
#include "cuda/gpu/runtime.cuh"
#else
#include "executor.hpp"
#endif

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
// schedule after another, or on a GPU with one seed after another. `tiny`: ThreadSanitizer watches,
// whose fibers are slow.
void check(Random& random, bool tiny);

#ifdef __CUDACC__
inline constexpr bool kOnGpu = true;
#else
inline constexpr bool kOnGpu = false;

inline void* allocate(std::size_t bytes) { return std::malloc(bytes); }
inline void release(void* area) { std::free(area); }

// As on a GPU: the kernel gets copies of its arguments.
template <class... P>
void launch(Dim3 grid, Dim3 block, void (*kernel)(P...), std::type_identity_t<P>... arguments) {
  launch(grid, block, 0, [&] { kernel(arguments...); });
}

// What the error says that f() throws; ends the program where it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  std::fprintf(stderr, "an error was expected\n");
  std::exit(1);
}
#endif

// Memory that kernels reach, of exactly so many bytes, so that AddressSanitizer and memcheck see
// what is read or written beside it.
template <class T>
class Exact {
 public:
  explicit Exact(std::size_t count, std::size_t offset = 0)
      : area_(allocate(count * sizeof(T) + offset)), count_(count) {
    data_ = reinterpret_cast<T*>(static_cast<char*>(area_.get()) + offset);
    std::memset(area_.get(), 0x5A, count * sizeof(T) + offset);
  }
  explicit Exact(const std::vector<T>& values) : Exact(values.size()) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  std::vector<T> copy() const { return std::vector<T>(data_, data_ + count_); }

 private:
  struct Release {
    void operator()(void* area) const { release(area); }
  };
  std::unique_ptr<void, Release> area_;
  T* data_;
  std::size_t count_;
};

}  // namespace simt
