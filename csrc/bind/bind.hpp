#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

template <class T>
using Vector = nanobind::ndarray<T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

template <class Value>
using Matrix =
    nanobind::ndarray<Value, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

// What keeps something alive as long as the array that shows its memory.
template <class Owner>
nanobind::capsule hold(Owner owner) {
  return nanobind::capsule(new Owner(std::move(owner)),
                           [](void* p) noexcept { delete static_cast<Owner*>(p); });
}

template <class T>
nanobind::ndarray<nanobind::numpy, T, nanobind::ndim<1>> to_array(std::vector<T>&& values) {
  T* const data = values.data();  // stays where it is when the vector moves
  const std::size_t shape[1] = {values.size()};
  return {data, 1, shape, hold(std::move(values))};
}

// Without the interpreter's lock, which no result may need.
using Freely = nanobind::call_guard<nanobind::gil_scoped_release>;

void bind_cache(nanobind::module_& m);
void bind_graph(nanobind::module_& m);
void bind_io(nanobind::module_& m);
void bind_launch(nanobind::module_& m);
void bind_rows(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);

}  // namespace gnnsys

namespace nanobind::detail {

// An array with one dimension, which the call keeps alive; empty for None where that is let pass.
template <class T>
struct type_caster<std::span<T>> {
  NB_TYPE_CASTER(std::span<T>, make_caster<gnnsys::Vector<T>>::Name)

  bool from_python(handle source, uint32_t flags, cleanup_list* cleanup) noexcept {
    if (!array.from_python(source, flags, cleanup)) return false;
    value =
        source.is_none() ? std::span<T>() : std::span<T>(array.value.data(), array.value.size());
    return true;
  }

  make_caster<gnnsys::Vector<T>> array;
};

// A number of threads.
template <>
struct type_caster<gnnsys::ThreadPool> {
  NB_TYPE_CASTER(gnnsys::ThreadPool, const_name("int"))

  bool from_python(handle source, uint32_t flags, cleanup_list* cleanup) noexcept {
    make_caster<int> number;
    if (!number.from_python(source, flags, cleanup)) return false;
    value = gnnsys::ThreadPool(number.value);
    return true;
  }
};

}  // namespace nanobind::detail
