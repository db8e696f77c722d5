#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace gnnsys {

template <class T>
using Vector = nanobind::ndarray<T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

void bind_aggregate(nanobind::module_& m);
void bind_edge_sort(nanobind::module_& m);
void bind_rmat(nanobind::module_& m);

}  // namespace gnnsys
