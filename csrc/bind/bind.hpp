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

void bind_aggregate(nanobind::module_& m);
void bind_cache_planner(nanobind::module_& m);
void bind_edge_sort(nanobind::module_& m);
void bind_execute_plan(nanobind::module_& m);
void bind_file_reader(nanobind::module_& m);
void bind_graph_sampler(nanobind::module_& m);
void bind_keyed_dropout(nanobind::module_& m);
void bind_pair_sums(nanobind::module_& m);
void bind_rmat(nanobind::module_& m);

}  // namespace gnnsys
