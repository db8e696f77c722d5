#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "bind.hpp"
#include "gnnsys/errors.hpp"
#include "gnnsys/graph/aggregate.hpp"
#include "gnnsys/graph/communities.hpp"
#include "gnnsys/graph/edge_softmax.hpp"
#include "gnnsys/graph/edge_sort.hpp"
#include "gnnsys/graph/edges.hpp"
#include "gnnsys/graph/fold_rows.hpp"
#include "gnnsys/graph/pair_sums.hpp"
#include "gnnsys/graph/rmat.hpp"
#include "gnnsys/graph/segment_matmul.hpp"
#include "gnnsys/graph/typed_pairs.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

template <class Index>
void bind_edges(nb::module_& m) {
  m.def("count_targets", &count_targets<Index>, "source"_a, "target"_a, "num_sources"_a, "counts"_a,
        Freely(),
        "Adds the edges of each target; returns -1 or the first edge with a node outside.");
  m.def("split_edges", &split_edges<Index>, "source"_a, "target"_a, "bounds"_a, "first_number"_a,
        "source_out"_a, "target_out"_a, "number_out"_a.none(), "sizes"_a, Freely(),
        "Groups edges by the bucket of their target, stably.");
  m.def("sort_edges", &sort_edges<Index>, "source"_a, "target"_a, "number"_a.none(),
        "first_target"_a, "indptr"_a, "indices"_a, "number_out"_a.none(), "threads"_a, Freely(),
        "Sorts the edges of a range of targets into CSC, sources ascending; returns whether they "
        "are those that indptr counts.");
  m.def("draw_rmat_edges", &draw_rmat_edges<Index>, "edge_key"_a, "id_key"_a, "scale"_a,
        "alias"_a.noconvert(), "first"_a, "source"_a.noconvert(), "target"_a.noconvert(),
        "threads"_a, Freely(),
        "Draws as many R-MAT edges as fit into `source` and `target`, from number `first` on.");
}

template <class Index>
void bind_communities(nb::module_& m) {
  m.def("propagate_labels", &propagate_labels<Index>, "indptr"_a, "indices"_a, "first"_a, "last"_a,
        "most"_a, "labels"_a.noconvert(), "sizes"_a.noconvert(), "votes"_a.noconvert(), Freely(),
        "Gives nodes first to last - 1 in turn the label that most of their in-neighbours have; "
        "returns how many "
        "took another one, or -1 - e where edge e has a source outside the graph.");
  m.def("adopt_labels", &adopt_labels<Index>, "indptr"_a, "indices"_a, "first"_a, "last"_a,
        "labels"_a.noconvert(), "votes"_a.noconvert(), Freely(),
        "Gives nodes without in-neighbours a label of their targets first to last - 1.");
}

template <class Id, class Order>
void bind_group_edges(nb::module_& m) {
  m.def("group_edges", &group_edges<Id, Order>, "key"_a, "value"_a, "num_values"_a, "indptr"_a,
        "value_out"_a, "order_out"_a, Freely(),
        "Groups edges by key, stably; returns -1 or the first edge whose key or value is outside.");
}

template <class Id>
void bind_add_loops(nb::module_& m) {
  m.def("add_loops", &add_loops<Id>, "indptr"_a, "source"_a, "order"_a.none(), "num_nodes"_a,
        "keep"_a, "indptr_out"_a, "source_out"_a, "target_out"_a, "number_out"_a, Freely(),
        "Puts a loop of each node behind the other edges of its target; returns the edges written "
        "and the greatest source and target of them.");
}

class Aggregator {
 public:
  Aggregator(ThreadPool threads, const std::string& isa)
      : threads_(threads), isa_(parse_isa(isa)) {}

  int64_t sum(const EdgeArrays& edges, const RowArrays& rows, uintptr_t out) {
    return sum_neighbors(edges, rows, out, threads_, isa_);
  }

  int64_t dot(const EdgeArrays& edges, const RowArrays& rows, uintptr_t y, uintptr_t out) {
    return dot_neighbors(edges, rows, y, out, threads_, isa_);
  }

  template <class Value, class Id>
  int64_t fold(Vector<const int64_t> indptr, Vector<const Id> source, int64_t own,
               Vector<int64_t> next, Matrix<const Value> rows, int64_t first, Fold how,
               Matrix<Value> out) {
    const auto count = static_cast<int64_t>(out.shape(0));
    require(static_cast<int64_t>(indptr.size()) == count + 1 &&
                static_cast<int64_t>(next.size()) == count && rows.shape(1) == out.shape(1) &&
                indptr.data()[0] >= 0 &&
                indptr.data()[count] <= static_cast<int64_t>(source.size()),
            "fold: arrays that do not fit each other");
    const FoldedTargets<Id> targets{indptr.data(), count, source.data(), own, next.data()};
    const auto n = static_cast<int64_t>(rows.shape(0));
    const auto width = static_cast<int64_t>(rows.shape(1));
    nb::gil_scoped_release release;
    return fold_rows(targets, rows.data(), first, n, width, how, out.data(), threads_, isa_);
  }

 private:
  const ThreadPool threads_;
  const Isa isa_;
};

template <class Value, class Id>
void bind_fold(nb::class_<Aggregator>& c) {
  c.def("fold", &Aggregator::fold<Value, Id>, "indptr"_a.noconvert(), "source"_a.noconvert(),
        "own"_a, "next"_a.noconvert(), "rows"_a.noconvert(), "first"_a, "how"_a,
        "out"_a.noconvert(),
        "Folds the rows from number `first` on into the targets that have edges from them; returns "
        "-1 or an edge whose row should have come before.");
}

class EdgeSoftmax {
 public:
  EdgeSoftmax(ThreadPool threads, const std::string& isa)
      : threads_(threads), isa_(parse_isa(isa)) {}

  int64_t softmax(const EdgeArrays& edges, const EdgeLogits& logits, uintptr_t out) {
    return edge_softmax(edges, logits, out, threads_, isa_);
  }

  int64_t derive(const EdgeArrays& edges, const EdgeLogits& logits, uintptr_t alpha, uintptr_t grad,
                 uintptr_t out, uintptr_t of_targets) {
    return edge_softmax_backward(edges, logits, alpha, grad, out, of_targets, threads_, isa_);
  }

  void sum(const EdgeArrays& edges, const std::string& dtype, int64_t heads, uintptr_t values,
           uintptr_t out) {
    sum_edges(edges, dtype, heads, values, out, threads_, isa_);
  }

 private:
  const ThreadPool threads_;
  const Isa isa_;
};

// Sums on threads of the process.
class PairSums {
 public:
  PairSums(ThreadPool threads, const std::string& isa) : threads_(threads), isa_(parse_isa(isa)) {}

  template <class Value, class Id>
  void sum(Vector<const int64_t> indptr, Vector<const Id> other, Matrix<const Value> weight,
           Matrix<const Value> u, Value tau, Vector<Value> out) {
    const Pairs<Value, Id> pairs = check_pairs(indptr, other, weight, u);
    require(out.size() == u.shape(0), "pair_sums: out of another length");
    const auto width = static_cast<int64_t>(u.shape(1));
    nb::gil_scoped_release release;
    pair_sums(pairs, u.data(), width, tau, out.data(), threads_, isa_);
  }

  template <class Value, class Id>
  void derive(Vector<const int64_t> indptr, Vector<const Id> other, Matrix<const Value> weight,
              Matrix<const Value> u, Value tau, Vector<const Value> grad, Matrix<Value> out) {
    const Pairs<Value, Id> pairs = check_pairs(indptr, other, weight, u);
    require(grad.size() == u.shape(0) && out.shape(0) == u.shape(0) && out.shape(1) == u.shape(1),
            "pair_sums: arrays of different lengths");
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
    require(static_cast<int64_t>(indptr.size()) == rows + 1 && starts[0] == 0 &&
                starts[rows] == pairs && static_cast<int64_t>(weight.shape(0)) == pairs &&
                weight.shape(1) == 2 && std::is_sorted(starts, starts + rows + 1),
            "pair_sums: arrays that do not fit each other");
    const auto is_row = [rows](Id id) { return id >= 0 && static_cast<int64_t>(id) < rows; };
    require(std::all_of(other.data(), other.data() + pairs, is_row),
            "pair_sums: a pair whose other row is none");
    return {starts, rows, other.data(), weight.data()};
  }

  const ThreadPool threads_;
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

// Products of rows with the matrices of their types on threads of the process.
class SegmentProducts {
 public:
  SegmentProducts(ThreadPool threads, const std::string& isa)
      : threads_(threads), isa_(parse_isa(isa)) {}

  int64_t matmul(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t weight,
                 const std::array<int64_t, 4>& strides, uintptr_t out) {
    return segment_matmul(segments, rows, weight, strides, out, threads_, isa_);
  }

  int64_t outer(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t grad,
                uintptr_t out) {
    return segment_outer(segments, rows, grad, out, threads_, isa_);
  }

 private:
  const ThreadPool threads_;
  const Isa isa_;
};

void bind_segment_products(nb::module_& m) {
  nb::class_<SegmentArrays>(m, "SegmentArrays", "Rows of a result in the order of their types.")
      .def(nb::init<uintptr_t, int64_t, uintptr_t>(), "ptr"_a, "num_types"_a, "index"_a);
  nb::class_<SegmentRows>(m, "SegmentRows", "Rows that are multiplied, and how wide they become.")
      .def(nb::init<std::string, uintptr_t, int64_t, int64_t, int64_t, int64_t>(), "dtype"_a, "x"_a,
           "num_rows"_a, "blocks"_a, "width"_a, "columns"_a);
  nb::class_<SegmentProducts>(m, "SegmentProducts", "Products of rows with their type's matrix.")
      .def(nb::init<ThreadPool, const std::string&>(), "threads"_a, "isa"_a = "auto")
      .def("matmul", &SegmentProducts::matmul, "segments"_a, "rows"_a, "weight"_a, "strides"_a,
           "out"_a, Freely(),
           "Multiplies each row with its type's matrix; returns -1 or a row whose index is none.")
      .def("outer", &SegmentProducts::outer, "segments"_a, "rows"_a, "grad"_a, "out"_a, Freely(),
           "Sums each type's outer products; returns as matmul.");
}

}  // namespace

void bind_graph(nb::module_& m) {
  bind_edges<int32_t>(m);
  bind_edges<int64_t>(m);
  bind_communities<int32_t>(m);
  bind_communities<int64_t>(m);
  bind_group_edges<int32_t, int32_t>(m);
  bind_group_edges<int32_t, int64_t>(m);
  bind_group_edges<int64_t, int64_t>(m);
  bind_add_loops<int32_t>(m);
  bind_add_loops<int64_t>(m);
  m.def("find_indptr_fault", &find_indptr_fault, "indptr"_a, "num_edges"_a, Freely(),
        "The first entry that descends or leaves [0, num_edges], or -1.");
  m.def("scan_edges", &scan_edges, "source"_a, "target"_a, Freely(),
        "Whether targets ascend; the least and the greatest source; those of the targets.");
  m.def("sort_by_type", &sort_by_type, "source"_a, "target"_a, "type"_a, "num_sources"_a,
        "num_targets"_a, "type_ptr"_a, "source_out"_a, "target_out"_a, "order_out"_a, Freely(),
        "Sorts edges by type, stably; whether they were, or None where an id is out of range.");
  m.def("number_pairs", &number_pairs, "node"_a, "type_ptr"_a, "num_nodes"_a, "pair_of_edge"_a,
        "node_of_pair"_a, "pair_ptr"_a, Freely(),
        "Numbers the distinct (node, type) of edges sorted by type; returns how many there are.");
  m.def("count_sorted", &count_sorted, "target"_a, "indptr"_a, Freely(),
        "Fills indptr for targets that ascend.");
  m.def("permute_ids", &permute_ids, "key"_a, "num_ids"_a, "inverse"_a, "ids"_a.noconvert(),
        Freely(), "Maps ids in place by the bijection of [0, num_ids) that `key` gives.");
  m.def("count_until_zeros", &count_until_zeros, "rows"_a, "num_rows"_a, "row_bytes"_a, Freely(),
        "Rows at an address up to the last that is not all zero bits.");
  nb::class_<EdgeArrays>(m, "EdgeArrays", "Edges grouped by target.")
      .def(nb::init<uintptr_t, int64_t, uintptr_t, uintptr_t, int>(), "indptr"_a, "num_targets"_a,
           "source"_a, "order"_a, "id_bytes"_a);
  nb::class_<RowArrays>(m, "RowArrays", "Rows and the factors that they are summed with.")
      .def(
          nb::init<std::string, uintptr_t, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, bool>(),
          "dtype"_a, "x"_a, "num_rows"_a, "heads"_a, "channels"_a, "weight"_a, "scale"_a, "mean"_a);
  nb::enum_<Fold>(m, "Fold", "What becomes of a target's value and a neighbour's.")
      .value("sum", Fold::sum)
      .value("max", Fold::max)
      .value("min", Fold::min);
  nb::class_<Aggregator> a(m, "Aggregator", "Sums over neighbours on threads of the process.");
  a.def(nb::init<ThreadPool, const std::string&>(), "threads"_a, "isa"_a = "auto")
      .def("sum", &Aggregator::sum, "edges"_a, "rows"_a, "out"_a, Freely(),
           "Sums rows over each target's edges; returns -1 or an edge whose source is no row.")
      .def("dot", &Aggregator::dot, "edges"_a, "rows"_a, "y"_a, "out"_a, Freely(),
           "Dot products of each edge's rows; returns as sum.");
  bind_fold<float, int32_t>(a);
  bind_fold<float, int64_t>(a);
  bind_fold<double, int32_t>(a);
  bind_fold<double, int64_t>(a);
  nb::class_<EdgeLogits>(m, "EdgeLogits", "The terms of each edge's logits.")
      .def(nb::init<std::string, int64_t, uintptr_t, uintptr_t, int64_t, uintptr_t, bool, double>(),
           "dtype"_a, "heads"_a, "edge"_a, "source"_a, "num_sources"_a, "target"_a, "leaky"_a,
           "slope"_a);
  nb::class_<EdgeSoftmax>(m, "EdgeSoftmax",
                          "Softmax over the edges of each target, on threads of the process.")
      .def(nb::init<ThreadPool, const std::string&>(), "threads"_a, "isa"_a = "auto")
      .def("softmax", &EdgeSoftmax::softmax, "edges"_a, "logits"_a, "out"_a, Freely(),
           "Writes each edge's share; returns -1 or an edge whose source is no row.")
      .def("derive", &EdgeSoftmax::derive, "edges"_a, "logits"_a, "alpha"_a, "grad"_a, "out"_a,
           "of_targets"_a, Freely(),
           "Writes the derivative by each edge's logits, and its sum for each target; returns as "
           "softmax.")
      .def("sum", &EdgeSoftmax::sum, "edges"_a, "dtype"_a, "heads"_a, "values"_a, "out"_a, Freely(),
           "Sums values of edges for each target.");
  nb::class_<PairSums> c(m, "PairSums", "Sums of exponentials of cosines over pairs of rows.");
  c.def(nb::init<ThreadPool, const std::string&>(), "threads"_a, "isa"_a = "auto");
  bind_pair_sums<float, int32_t>(c);
  bind_pair_sums<float, int64_t>(c);
  bind_pair_sums<double, int32_t>(c);
  bind_pair_sums<double, int64_t>(c);
  bind_segment_products(m);
}

}  // namespace gnnsys
