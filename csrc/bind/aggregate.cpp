#include "gnnsys/aggregate.hpp"

#include <nanobind/stl/string.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bind.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Addresses come as integers: the Python caller checks what they point to, and rows may be of
// bfloat16, which no array protocol knows. 0 stands for an array that is not there.
struct EdgeArrays {
  uintptr_t indptr;
  int64_t num_targets;
  uintptr_t source;
  uintptr_t order;
  int id_bytes;
};

struct RowArrays {
  std::string dtype;
  uintptr_t x;
  int64_t num_rows;
  int64_t heads;
  int64_t channels;
  uintptr_t weight;
  uintptr_t scale;
  bool mean;
};

// Calls work(edges, coefficients, x) with the element types that the arrays have.
template <class Value, class Work>
int64_t with_types(const EdgeArrays& edges, const RowArrays& rows, const Work& work) {
  const Coefficients<Value> factors{at<const Value>(rows.weight), at<const Value>(rows.scale),
                                    rows.mean};
  const Rows<Value> x{at<const Value>(rows.x), rows.num_rows, rows.heads, rows.channels};
  const auto call = [&](auto id) {
    using Id = decltype(id);
    const Neighbors<Id> neighbors{at<const int64_t>(edges.indptr), edges.num_targets,
                                  at<const Id>(edges.source), at<const Id>(edges.order)};
    return work(neighbors, factors, x, Value{});
  };
  return edges.id_bytes == 4 ? call(int32_t{}) : call(int64_t{});
}

template <class Work>
int64_t dispatch(const EdgeArrays& edges, const RowArrays& rows, const Work& work) {
  if (rows.dtype == "float32") return with_types<float>(edges, rows, work);
  if (rows.dtype == "float64") return with_types<double>(edges, rows, work);
  if (rows.dtype == "bfloat16") return with_types<BFloat16>(edges, rows, work);
  throw std::invalid_argument("aggregation of " + rows.dtype);
}

class Aggregator {
 public:
  Aggregator(int threads, const std::string& isa) : threads_(threads), isa_(parse_isa(isa)) {}

  int64_t sum(const EdgeArrays& edges, const RowArrays& rows, uintptr_t out) {
    nb::gil_scoped_release release;
    return dispatch(edges, rows, [&](const auto& e, const auto& f, const auto& x, auto value) {
      return sum_neighbors(e, f, x, at<decltype(value)>(out), threads_, isa_);
    });
  }

  int64_t dot(const EdgeArrays& edges, const RowArrays& rows, uintptr_t y, uintptr_t out) {
    nb::gil_scoped_release release;
    return dispatch(edges, rows, [&](const auto& e, const auto& f, const auto& x, auto value) {
      using Value = decltype(value);
      return dot_neighbors(e, f, x, at<const Value>(y), at<Value>(out), threads_, isa_);
    });
  }

 private:
  ThreadPool threads_;
  const Isa isa_;
};

void check(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <class Id>
void bind_group_edges(nb::module_& m) {
  m.def(
      "group_edges",
      [](Vector<const int64_t> key, Vector<const int64_t> value, Vector<int64_t> indptr,
         Vector<Id> value_out, Vector<Id> order_out) {
        const std::size_t edges = key.size();
        check(value.size() == edges && value_out.size() == edges && order_out.size() == edges &&
                  indptr.size() > 0,
              "group_edges: arrays of different lengths");
        nb::gil_scoped_release release;
        return group_edges(key.data(), value.data(), static_cast<int64_t>(edges),
                           static_cast<int64_t>(indptr.size()) - 1, indptr.data(), value_out.data(),
                           order_out.data());
      },
      "key"_a, "value"_a, "indptr"_a, "value_out"_a, "order_out"_a,
      "Groups edges by key, stably; returns -1 or the first edge whose key lies outside.");
}

}  // namespace

void bind_aggregate(nb::module_& m) {
  nb::class_<EdgeArrays>(m, "EdgeArrays", "Edges grouped by target.")
      .def(nb::init<uintptr_t, int64_t, uintptr_t, uintptr_t, int>(), "indptr"_a, "num_targets"_a,
           "source"_a, "order"_a, "id_bytes"_a);
  nb::class_<RowArrays>(m, "RowArrays", "Rows and the factors that they are summed with.")
      .def(
          nb::init<std::string, uintptr_t, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, bool>(),
          "dtype"_a, "x"_a, "num_rows"_a, "heads"_a, "channels"_a, "weight"_a, "scale"_a, "mean"_a);
  nb::class_<Aggregator>(m, "Aggregator", "Sums over neighbours on a set of threads of its own.")
      .def(nb::init<int, const std::string&>(), "threads"_a, "isa"_a = "auto")
      .def("sum", &Aggregator::sum, "edges"_a, "rows"_a, "out"_a,
           "Sums rows over each target's edges; returns -1 or an edge whose source is no row.")
      .def("dot", &Aggregator::dot, "edges"_a, "rows"_a, "y"_a, "out"_a,
           "Dot products of each edge's rows; returns as sum.");
  m.def(
      "scan_edges",
      [](Vector<const int64_t> source, Vector<const int64_t> target) {
        check(source.size() == target.size(), "scan_edges: arrays of different lengths");
        EdgeScan scan;
        {
          nb::gil_scoped_release release;
          scan = scan_edges(source.data(), target.data(), static_cast<int64_t>(source.size()));
        }
        return nb::make_tuple(scan.sorted, scan.min_source, scan.max_source, scan.min_target,
                              scan.max_target);
      },
      "source"_a, "target"_a,
      nb::sig("def scan_edges(source: numpy.typing.NDArray[numpy.int64], target: "
              "numpy.typing.NDArray[numpy.int64]) -> tuple[bool, int, int, int, int]"),
      "Whether targets ascend; the least and the greatest source; those of the targets.");
  m.def(
      "count_sorted",
      [](Vector<const int64_t> target, Vector<int64_t> indptr) {
        check(indptr.size() > 0, "count_sorted: indptr is empty");
        const auto targets = static_cast<int64_t>(indptr.size()) - 1;
        const std::size_t edges = target.size();
        check(edges == 0 || (target.data()[0] >= 0 && target.data()[edges - 1] < targets),
              "count_sorted: a target outside indptr");
        nb::gil_scoped_release release;
        count_sorted(target.data(), static_cast<int64_t>(edges), targets, indptr.data());
      },
      "target"_a, "indptr"_a, "Fills indptr for targets that ascend.");
  m.def(
      "count_until_zeros",
      [](uintptr_t rows, int64_t num_rows, int64_t row_bytes) {
        nb::gil_scoped_release release;
        return count_until_zeros(at<const void>(rows), num_rows, row_bytes);
      },
      "rows"_a, "num_rows"_a, "row_bytes"_a,
      "Rows at an address up to the last that is not all zero bits.");
  bind_group_edges<int32_t>(m);
  bind_group_edges<int64_t>(m);
}

}  // namespace gnnsys
