#include "gnnsys/edge_sort.hpp"

#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <stdexcept>

#include "bind.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

using Numbers = std::optional<Vector<int64_t>>;

void check(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

int64_t* data_or_null(Numbers& numbers) { return numbers ? numbers->data() : nullptr; }

template <class Index>
void bind_for(nb::module_& m) {
  m.def(
      "count_targets",
      [](Vector<const Index> source, Vector<const Index> target, int64_t num_sources,
         Vector<int64_t> counts) {
        check(source.size() == target.size(), "count_targets: arrays of different lengths");
        nb::gil_scoped_release release;
        return count_targets(source.data(), target.data(), static_cast<int64_t>(source.size()),
                             num_sources, static_cast<int64_t>(counts.size()), counts.data());
      },
      "source"_a, "target"_a, "num_sources"_a, "counts"_a,
      "Adds the edges of each target; returns -1 or the first edge with a node outside.");
  m.def(
      "split_edges",
      [](Vector<const Index> source, Vector<const Index> target, Vector<const int64_t> bounds,
         int64_t first_number, Vector<Index> source_out, Vector<Index> target_out,
         Numbers number_out, Vector<int64_t> sizes) {
        const std::size_t edges = source.size();
        check(target.size() == edges && source_out.size() == edges && target_out.size() == edges &&
                  (!number_out || number_out->size() == edges) && sizes.size() > 0 &&
                  bounds.size() == sizes.size() + 1,
              "split_edges: arrays of different lengths");
        nb::gil_scoped_release release;
        split_edges(source.data(), target.data(), static_cast<int64_t>(edges), bounds.data(),
                    static_cast<int64_t>(sizes.size()), first_number, source_out.data(),
                    target_out.data(), data_or_null(number_out), sizes.data());
      },
      "source"_a, "target"_a, "bounds"_a, "first_number"_a, "source_out"_a, "target_out"_a,
      "number_out"_a.none(), "sizes"_a, "Groups edges by the bucket of their target, stably.");
  m.def(
      "sort_edges",
      [](Vector<const Index> source, Vector<const Index> target, Numbers number,
         int64_t first_target, Vector<const int64_t> indptr, Vector<Index> indices,
         Numbers number_out, int threads) {
        const std::size_t edges = source.size();
        check(target.size() == edges && indices.size() == edges && indptr.size() > 0 &&
                  number.has_value() == number_out.has_value() &&
                  (!number || (number->size() == edges && number_out->size() == edges)),
              "sort_edges: arrays of different lengths");
        const auto targets = static_cast<int64_t>(indptr.size()) - 1;
        check(indptr.data()[targets] - indptr.data()[0] == static_cast<int64_t>(edges),
              "sort_edges: indptr does not hold these edges");
        nb::gil_scoped_release release;
        ThreadPool pool(threads);
        return sort_edges(source.data(), target.data(), data_or_null(number),
                          static_cast<int64_t>(edges), first_target, targets, indptr.data(),
                          indices.data(), data_or_null(number_out), pool);
      },
      "source"_a, "target"_a, "number"_a.none(), "first_target"_a, "indptr"_a, "indices"_a,
      "number_out"_a.none(), "threads"_a,
      "Sorts the edges of a range of targets into CSC, sources ascending; returns whether they are "
      "those that indptr counts.");
}

}  // namespace

void bind_edge_sort(nb::module_& m) {
  bind_for<int32_t>(m);
  bind_for<int64_t>(m);
}

}  // namespace gnnsys
