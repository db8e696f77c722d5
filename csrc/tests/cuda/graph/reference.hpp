#pragma once

// What kernels over edges must compute, edge by edge, with the arithmetic of the CPU's own.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../../../cpu/wide_values.hpp"
#include "cuda/graph/edges.cuh"
#include "simt/check.hpp"

namespace reference {

using gnnsys::BFloat16;
using gnnsys::narrow;
using gnnsys::widen;
using gnnsys::cuda::i32;
using gnnsys::cuda::i64;
using gnnsys::cuda::u32;
using gnnsys::cuda::u64;
template <class Value>
using Wide = gnnsys::Wide<Value>;

#define GNNSYS_TARGET
#include "../../../cpu/rows/row_kernel.inl"
#undef GNNSYS_TARGET

// The type of the device's values that has the same bits.
template <class Value>
struct DeviceOf {
  using type = Value;
};
template <>
struct DeviceOf<BFloat16> {
  using type = gnnsys::cuda::BFloat;
};
template <class Value>
using Device = typename DeviceOf<Value>::type;

// Values of about 1, of either sign, that do not add up without rounding.
template <class Value>
std::vector<Value> values(simt::Random& random, i64 count) {
  std::vector<Value> all(count);
  for (Value& value : all) {
    const double drawn = std::uniform_real_distribution<double>(-2, 2)(random);
    narrow(static_cast<Wide<Value>>(drawn), value);
  }
  return all;
}

template <class Value>
struct Rows {
  std::vector<Value> x, weight, scale;  // empty: not there
  i64 heads, channels;
  bool mean;
};

template <class Id>
struct Edges {
  std::vector<i64> indptr;
  std::vector<Id> source, order;  // order empty: not there

  i64 targets() const { return static_cast<i64>(indptr.size()) - 1; }
  i64 place_of(i64 edge) const { return order.empty() ? edge : static_cast<i64>(order[edge]); }
};

// Targets of these degrees, with sources below num_rows.
template <class Id>
Edges<Id> draw_edges(simt::Random& random, const std::vector<i64>& degrees, i64 num_rows,
                     bool ordered) {
  Edges<Id> edges{{0}, {}, {}};
  for (i64 degree : degrees) edges.indptr.push_back(edges.indptr.back() + degree);
  for (i64 e = 0; e < edges.indptr.back(); ++e) {
    edges.source.push_back(static_cast<Id>(simt::draw(random, 0, num_rows - 1)));
    if (ordered) edges.order.push_back(static_cast<Id>(e));
  }
  std::shuffle(edges.order.begin(), edges.order.end(), random);
  return edges;
}

// (T, H, C); edges whose source is no row are left out.
template <class Value, class Id>
std::vector<Value> sums(const Edges<Id>& edges, const Rows<Value>& rows) {
  const i64 width = rows.heads * rows.channels;
  std::vector<Value> out(edges.targets() * width);
  for (i64 t = 0; t < edges.targets(); ++t) {
    const i64 from = edges.indptr[t], to = edges.indptr[t + 1];
    std::vector<Wide<Value>> sum(width, 0);
    for (i64 e = from; e < to; ++e) {
      const i64 source = static_cast<i64>(edges.source[e]);
      if (source < 0 || source * width >= static_cast<i64>(rows.x.size())) continue;
      for (i64 h = 0; h < rows.heads; ++h) {
        Wide<Value> factor = rows.scale.empty() ? 1 : widen(rows.scale[source]);
        if (!rows.weight.empty()) factor *= widen(rows.weight[edges.place_of(e) * rows.heads + h]);
        const i64 at = h * rows.channels;
        add_multiple(&sum[at], &rows.x[source * width + at], factor, rows.channels);
      }
    }
    for (i64 i = 0; i < width; ++i) {
      if (rows.mean && from < to) sum[i] /= static_cast<Wide<Value>>(to - from);
      narrow(sum[i], out[t * width + i]);
    }
  }
  return out;
}

// (E, H), as weights lie.
template <class Value, class Id>
std::vector<Value> dots(const Edges<Id>& edges, const Rows<Value>& rows,
                        const std::vector<Value>& y) {
  const i64 width = rows.heads * rows.channels;
  std::vector<Value> out(edges.source.size() * rows.heads);
  for (i64 t = 0; t < edges.targets(); ++t) {
    for (i64 e = edges.indptr[t]; e < edges.indptr[t + 1]; ++e) {
      const i64 source = static_cast<i64>(edges.source[e]);
      Wide<Value> factor = rows.scale.empty() ? 1 : widen(rows.scale[source]);
      if (rows.mean) factor /= static_cast<Wide<Value>>(edges.indptr[t + 1] - edges.indptr[t]);
      for (i64 h = 0; h < rows.heads; ++h) {
        const i64 at = h * rows.channels;
        const Wide<Value> product =
            dot(&rows.x[source * width + at], &y[t * width + at], rows.channels);
        narrow(factor * product, out[edges.place_of(e) * rows.heads + h]);
      }
    }
  }
  return out;
}

// The arrays where the kernel reads them: each in an allocation of its own size, each moved so that
// edge `first`, row `first` and place `first` lie at its beginning.
template <class Value, class Id>
class OnDevice {
 public:
  OnDevice(const Edges<Id>& edges, const Rows<Value>& rows, i64 first = 0)
      : indptr_(edges.indptr),
        source_(edges.source),
        order_(edges.order),
        x_(as_device(rows.x)),
        weight_(as_device(rows.weight)),
        scale_(as_device(rows.scale)),
        first_(first) {
    const i64 width = rows.heads * rows.channels;
    for (std::size_t i = 0; i < indptr_.size(); ++i) indptr_[i] += first;
    for (std::size_t i = 0; i < source_.size(); ++i) source_[i] += static_cast<Id>(first);
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] += static_cast<Id>(first);
    const auto moved_or_null = [&](auto& array, i64 step) {
      return array.size() == 0 ? nullptr : moved(array.data(), step);
    };
    this->edges = {indptr_.data(), edges.targets(), moved(source_.data(), 1),
                   moved_or_null(order_, 1)};
    this->rows = {moved(x_.data(), width),
                  width == 0 ? 0 : static_cast<i64>(rows.x.size()) / width + first,
                  rows.heads,
                  rows.channels,
                  moved_or_null(weight_, rows.heads),
                  moved_or_null(scale_, 1),
                  rows.mean};
  }

  // An array as the kernel's, where item `first` of `step` values lies at `data`.
  template <class T>
  T* moved(T* data, i64 step) const {
    const u64 back = static_cast<u64>(first_ * step) * sizeof(T);
    return reinterpret_cast<T*>(reinterpret_cast<u64>(data) - back);
  }

  gnnsys::cuda::Edges<Id> edges;
  gnnsys::cuda::Rows<Device<Value>> rows;

 private:
  static std::vector<Device<Value>> as_device(const std::vector<Value>& values) {
    std::vector<Device<Value>> same(values.size());
    if (!values.empty()) {
      std::memcpy(static_cast<void*>(same.data()), values.data(), values.size() * sizeof(Value));
    }
    return same;
  }

  simt::Exact<i64> indptr_;
  simt::Exact<Id> source_, order_;
  simt::Exact<Device<Value>> x_, weight_, scale_;
  i64 first_;
};

template <class Value>
bool same_bits(simt::Exact<Device<Value>>& found, const std::vector<Value>& expected) {
  return found.size() == expected.size() &&
         (expected.empty() ||
          std::memcmp(found.data(), expected.data(), expected.size() * sizeof(Value)) == 0);
}

}  // namespace reference
