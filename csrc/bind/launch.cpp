#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "bind.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

// cuLaunchKernel of CUDA's driver, or a function like it.
using Launch = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                       void* stream, void** arguments, void** extra);

// Copies of the arguments of a launch, side by side, and where each lies.
class Arguments {
 public:
  void add(const void* data, std::size_t bytes) {
    if (count_ == places_.size() || bytes > sizeof(bytes_) - used_) {
      throw std::invalid_argument("arguments: more than a launch is made with here");
    }
    places_[count_++] = bytes_ + used_;
    std::memcpy(bytes_ + used_, data, bytes);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  void** places() { return places_.data(); }

 private:
  static constexpr std::size_t kAlignment = 16;

  alignas(kAlignment) std::byte bytes_[1024];
  std::size_t used_ = 0, count_ = 0;
  std::array<void*, 32> places_;
};

int launch_kernel(std::uintptr_t call, std::uintptr_t function, unsigned blocks, unsigned threads,
                  std::uintptr_t stream, nb::list values) {
  Arguments arguments;
  for (nb::handle value : values) {
    if (PyLong_Check(value.ptr())) {
      const auto word = nb::cast<std::int64_t>(value);
      arguments.add(&word, sizeof word);
      continue;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(value.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
    const auto release = [](Py_buffer* held) { PyBuffer_Release(held); };
    const std::unique_ptr<Py_buffer, decltype(release)> held(&view, release);
    arguments.add(view.buf, static_cast<std::size_t>(view.len));
  }
  nb::gil_scoped_release free;
  return reinterpret_cast<Launch>(call)(reinterpret_cast<void*>(function), blocks, 1, 1, threads, 1,
                                        1, 0, reinterpret_cast<void*>(stream), arguments.places(),
                                        nullptr);
}

}  // namespace

void bind_launch(nb::module_& m) {
  m.def("launch_kernel", &launch_kernel, "call"_a, "function"_a, "blocks"_a, "threads"_a,
        "stream"_a, "arguments"_a,
        "Calls cuLaunchKernel, or a function like it, with integers of 64 bits and structures.");
}

}  // namespace gnnsys
