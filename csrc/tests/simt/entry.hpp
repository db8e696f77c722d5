#pragma once

// A kernel as a function that a program without C++ can call: SIMT_ENTRY(kernel) defines it.

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "executor.hpp"

namespace simt {

template <class... P, std::size_t... I>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
}

inline thread_local const char* told = nullptr;

template <class... P>
int enter(void (*kernel)(P...), Dim3 grid, Dim3 block, unsigned dynamic_shared,
          void** arguments) noexcept {
  const auto thread = [&] { call(kernel, arguments, std::index_sequence_for<P...>()); };
  told = try_run(grid, block, dynamic_shared, body_of(thread));
  return told == nullptr ? 0 : 1;
}

}  // namespace simt

// A function that is called as cuLaunchKernel of CUDA's driver is, but runs this kernel whatever
// the function; and what went wrong in the last launch of the thread, or null.
#define SIMT_ENTRY(...)                                                                     \
  extern "C" int simt_launch(void*, unsigned grid_x, unsigned grid_y, unsigned grid_z,      \
                             unsigned block_x, unsigned block_y, unsigned block_z,          \
                             unsigned shared, void*, void** arguments, void**) {            \
    return simt::enter(&__VA_ARGS__, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, \
                       shared, arguments);                                                  \
  }                                                                                         \
  extern "C" const char* simt_error() { return simt::told; }

// order: that of simt::Order, as a number.
#define SIMT_SCHEDULE                                                                      \
  extern "C" void simt_schedule(int order, std::uint64_t seed, unsigned resident_blocks) { \
    simt::set_schedule({static_cast<simt::Order>(order), seed, resident_blocks});          \
  }
