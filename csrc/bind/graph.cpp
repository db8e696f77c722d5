#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind.hpp"
#include "gnnsys/graph/aggregate.hpp"
#include "gnnsys/graph/edge_sort.hpp"
#include "gnnsys/graph/pair_sums.hpp"
#include "gnnsys/graph/rmat.hpp"
#include "gnnsys/graph/topology.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

template <class Index>
void bind_coo_to_csc(nb::module_& m) {
  m.def(
      "coo_to_csc",
      [](Vector<const int64_t> source, Vector<const int64_t> target, Vector<int64_t> indptr,
         Vector<Index> indices, Vector<int64_t> perm) {
        const int64_t edges = static_cast<int64_t>(source.size());
        const int64_t nodes = static_cast<int64_t>(indptr.size()) - 1;
        if (target.size() != source.size() || indices.size() != source.size() ||
            perm.size() != source.size() || nodes < 0) {
          throw std::invalid_argument("coo_to_csc: arrays of different lengths");
        }
        nb::gil_scoped_release release;
        coo_to_csc(source.data(), target.data(), edges, nodes, indptr.data(), indices.data(),
                   perm.data());
      },
      "source"_a, "target"_a, "indptr"_a, "indices"_a, "perm"_a,
      "Sorts an edge list by target, stably, into the arrays given.");
}

using Numbers = std::optional<Vector<int64_t>>;

void check(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

int64_t* data_or_null(Numbers& numbers) { return numbers ? numbers->data() : nullptr; }

template <class Index>
void bind_edge_sort(nb::module_& m) {
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

constexpr int64_t kMaxIds = int64_t{1} << 62;

template <class Index>
void bind_rmat(nb::module_& m) {
  m.def(
      "draw_rmat_edges",
      [](uint64_t edge_key, uint64_t id_key, int scale, Vector<const uint32_t> alias, int64_t first,
         Vector<Index> source, Vector<Index> target, int threads) {
        const int most = sizeof(Index) == 4 ? std::numeric_limits<int32_t>::digits : kRmatMaxScale;
        if (scale < 1 || scale > most) {
          throw std::invalid_argument("draw_rmat_edges: scale " + std::to_string(scale) +
                                      " is outside [1, " + std::to_string(most) + "] for ids of " +
                                      std::to_string(8 * sizeof(Index)) + " bits");
        }
        if (alias.size() != kRmatOutcomes) {
          throw std::invalid_argument("draw_rmat_edges: alias has " + std::to_string(alias.size()) +
                                      " entries, not " + std::to_string(kRmatOutcomes));
        }
        if (source.size() != target.size()) {
          throw std::invalid_argument("draw_rmat_edges: arrays of different lengths");
        }
        const auto count = static_cast<int64_t>(source.size());
        if (first < 0 || first > std::numeric_limits<int64_t>::max() - count) {
          throw std::invalid_argument("draw_rmat_edges: first edge " + std::to_string(first) +
                                      " is negative or too great");
        }
        nb::gil_scoped_release release;
        ThreadPool pool(threads);
        const Rmat rmat{edge_key, scale, alias.data(), IdPermutation(id_key, int64_t{1} << scale)};
        draw_rmat_edges(rmat, first, count, source.data(), target.data(), pool);
      },
      "edge_key"_a, "id_key"_a, "scale"_a, "alias"_a.noconvert(), "first"_a, "source"_a.noconvert(),
      "target"_a.noconvert(), "threads"_a,
      "Draws as many R-MAT edges as fit into `source` and `target`, from number `first` on.");
}

void permute(uint64_t key, int64_t num_ids, bool inverse, Vector<int64_t> ids) {
  if (num_ids < 1 || num_ids > kMaxIds) {
    throw std::invalid_argument("permute_ids: num_ids " + std::to_string(num_ids) +
                                " is outside [1, 2**62]");
  }
  int64_t wrong = -1;
  {
    nb::gil_scoped_release release;
    wrong = permute_ids(IdPermutation(key, num_ids), num_ids, inverse,
                        static_cast<int64_t>(ids.size()), ids.data());
  }
  if (wrong >= 0) {
    throw std::out_of_range("permute_ids: id " + std::to_string(ids.data()[wrong]) +
                            " at position " + std::to_string(wrong) + " is outside [0, " +
                            std::to_string(num_ids) + ")");
  }
}

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

// Sums on threads of the process.
class PairSums {
 public:
  PairSums(int threads, const std::string& isa) : threads_(threads), isa_(parse_isa(isa)) {}

  template <class Value, class Id>
  void sum(Vector<const int64_t> indptr, Vector<const Id> other, Matrix<const Value> weight,
           Matrix<const Value> u, Value tau, Vector<Value> out) {
    const Pairs<Value, Id> pairs = check_pairs(indptr, other, weight, u);
    if (out.size() != u.shape(0)) throw std::invalid_argument("pair_sums: out of another length");
    const auto width = static_cast<int64_t>(u.shape(1));
    nb::gil_scoped_release release;
    pair_sums(pairs, u.data(), width, tau, out.data(), threads_, isa_);
  }

  template <class Value, class Id>
  void derive(Vector<const int64_t> indptr, Vector<const Id> other, Matrix<const Value> weight,
              Matrix<const Value> u, Value tau, Vector<const Value> grad, Matrix<Value> out) {
    const Pairs<Value, Id> pairs = check_pairs(indptr, other, weight, u);
    if (grad.size() != u.shape(0) || out.shape(0) != u.shape(0) || out.shape(1) != u.shape(1)) {
      throw std::invalid_argument("pair_sums: arrays of different lengths");
    }
    const auto width = static_cast<int64_t>(u.shape(1));
    nb::gil_scoped_release release;
    pair_sums_backward(pairs, u.data(), width, tau, grad.data(), out.data(), threads_, isa_);
  }

 private:
  template <class Value, class Id>
  static Pairs<Value, Id> check_pairs(Vector<const int64_t> indptr, Vector<const Id> other,
                                      Matrix<const Value> weight, Matrix<const Value> u) {
    const auto rows = static_cast<int64_t>(u.shape(0));
    const auto pairs = static_cast<int64_t>(other.size());
    const int64_t* const starts = indptr.data();
    if (static_cast<int64_t>(indptr.size()) != rows + 1 || starts[0] != 0 ||
        starts[rows] != pairs || static_cast<int64_t>(weight.shape(0)) != pairs ||
        weight.shape(1) != 2 || !std::is_sorted(starts, starts + rows + 1)) {
      throw std::invalid_argument("pair_sums: arrays that do not fit each other");
    }
    const auto is_row = [rows](Id id) { return id >= 0 && static_cast<int64_t>(id) < rows; };
    if (!std::all_of(other.data(), other.data() + pairs, is_row)) {
      throw std::invalid_argument("pair_sums: a pair whose other row is none");
    }
    return {starts, rows, other.data(), weight.data()};
  }

  ThreadPool threads_;
  const Isa isa_;
};

template <class Value, class Id>
void bind_pair_sums(nb::class_<PairSums>& c) {
  c.def("sum", &PairSums::sum<Value, Id>, "indptr"_a.noconvert(), "other"_a.noconvert(),
        "weight"_a.noconvert(), "u"_a.noconvert(), "tau"_a, "out"_a.noconvert(),
        "Writes for each row the sum of weight * exp(tau * dot product) over its pairs.");
  c.def("derive", &PairSums::derive<Value, Id>, "indptr"_a.noconvert(), "other"_a.noconvert(),
        "weight"_a.noconvert(), "u"_a.noconvert(), "tau"_a, "grad"_a.noconvert(),
        "out"_a.noconvert(), "Writes the derivative of sum(grad * sums) by u.");
}

}  // namespace

void bind_graph(nb::module_& m) {
  bind_coo_to_csc<int32_t>(m);
  bind_coo_to_csc<int64_t>(m);
  m.def(
      "find_indptr_fault",
      [](Vector<const int64_t> indptr, int64_t num_edges) {
        if (indptr.size() == 0) return int64_t{0};
        nb::gil_scoped_release release;
        return find_indptr_fault(indptr.data(), static_cast<int64_t>(indptr.size()) - 1, num_edges);
      },
      "indptr"_a, "num_edges"_a, "The first entry that descends or leaves [0, num_edges], or -1.");
  bind_edge_sort<int32_t>(m);
  bind_edge_sort<int64_t>(m);
  bind_rmat<int32_t>(m);
  bind_rmat<int64_t>(m);
  m.def("permute_ids", &permute, "key"_a, "num_ids"_a, "inverse"_a, "ids"_a.noconvert(),
        "Maps ids in place by the bijection of [0, num_ids) that `key` gives.");
  nb::class_<EdgeArrays>(m, "EdgeArrays", "Edges grouped by target.")
      .def(nb::init<uintptr_t, int64_t, uintptr_t, uintptr_t, int>(), "indptr"_a, "num_targets"_a,
           "source"_a, "order"_a, "id_bytes"_a);
  nb::class_<RowArrays>(m, "RowArrays", "Rows and the factors that they are summed with.")
      .def(
          nb::init<std::string, uintptr_t, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, bool>(),
          "dtype"_a, "x"_a, "num_rows"_a, "heads"_a, "channels"_a, "weight"_a, "scale"_a, "mean"_a);
  nb::class_<Aggregator>(m, "Aggregator", "Sums over neighbours on threads of the process.")
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
  nb::class_<PairSums> c(m, "PairSums", "Sums of exponentials of cosines over pairs of rows.");
  c.def(nb::init<int, const std::string&>(), "threads"_a, "isa"_a = "auto");
  bind_pair_sums<float, int32_t>(c);
  bind_pair_sums<float, int64_t>(c);
  bind_pair_sums<double, int32_t>(c);
  bind_pair_sums<double, int64_t>(c);
}

}  // namespace gnnsys
