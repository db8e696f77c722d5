#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <utility>

namespace gnnsys {

template <class T>
using Vector = nanobind::ndarray<T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// What keeps a pooled area alive as long as the array that shows it.
inline nanobind::capsule hold(std::shared_ptr<char> area) {
  return nanobind::capsule(new std::shared_ptr<char>(std::move(area)),
                           [](void* p) noexcept { delete static_cast<std::shared_ptr<char>*>(p); });
}

template <class Value>
using Matrix =
    nanobind::ndarray<Value, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

void bind_cache(nanobind::module_& m);
void bind_graph(nanobind::module_& m);
void bind_io(nanobind::module_& m);
void bind_rows(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);

}  // namespace gnnsys
