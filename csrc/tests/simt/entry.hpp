#pragma once

// Kernels as functions that a program without C++ can call: SIMT_ENTRY(name, kernel) defines one.

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <type_traits>
#include <utility>

#include "executor.hpp"

namespace simt {

template <class... P, std::size_t... I>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
}

// What is told stays until the thread's next call.
template <class... P>
const char* enter(void (*kernel)(P...), const unsigned* shape, std::size_t dynamic_shared,
                  void** arguments) noexcept {
  thread_local std::string told;
  try {
    launch({shape[0], shape[1], shape[2]}, {shape[3], shape[4], shape[5]}, dynamic_shared,
           [&] { call(kernel, arguments, std::index_sequence_for<P...>()); });
    return nullptr;
  } catch (const std::exception& error) {
    told = error.what();
    return told.c_str();
  }
}

}  // namespace simt

// shape: blocks in x, y, z and threads of a block in x, y, z. arguments: where each lies. Returns
// what went wrong, or null.
#define SIMT_ENTRY(name, ...)                                                                \
  extern "C" const char* name(const unsigned* shape, std::size_t shared, void** arguments) { \
    return simt::enter(&__VA_ARGS__, shape, shared, arguments);                              \
  }

// order: that of simt::Order, as a number.
#define SIMT_SCHEDULE                                                                      \
  extern "C" void simt_schedule(int order, std::uint64_t seed, unsigned resident_blocks) { \
    simt::set_schedule({static_cast<simt::Order>(order), seed, resident_blocks});          \
  }
