#include "gnnsys/pair_sums.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "bind.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

template <class Value>
using Matrix = nb::ndarray<Value, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Sums on a set of threads of its own.
class PairSums {
 public:
  PairSums(int threads, const std::string& isa) : threads_(threads), isa_(parse_isa(isa)) {}

  template <class Value, class Id>
  void sum(Vector<const int64_t> indptr, Vector<const Id> other, Matrix<const Value> weight,
           Matrix<const Value> u, Value tau, Vector<Value> out) {
    const Pairs<Value, Id> pairs = check(indptr, other, weight, u);
    if (out.size() != u.shape(0)) throw std::invalid_argument("pair_sums: out of another length");
    const auto width = static_cast<int64_t>(u.shape(1));
    nb::gil_scoped_release release;
    pair_sums(pairs, u.data(), width, tau, out.data(), threads_, isa_);
  }

  template <class Value, class Id>
  void derive(Vector<const int64_t> indptr, Vector<const Id> other, Matrix<const Value> weight,
              Matrix<const Value> u, Value tau, Vector<const Value> grad, Matrix<Value> out) {
    const Pairs<Value, Id> pairs = check(indptr, other, weight, u);
    if (grad.size() != u.shape(0) || out.shape(0) != u.shape(0) || out.shape(1) != u.shape(1)) {
      throw std::invalid_argument("pair_sums: arrays of different lengths");
    }
    const auto width = static_cast<int64_t>(u.shape(1));
    nb::gil_scoped_release release;
    pair_sums_backward(pairs, u.data(), width, tau, grad.data(), out.data(), threads_, isa_);
  }

 private:
  template <class Value, class Id>
  static Pairs<Value, Id> check(Vector<const int64_t> indptr, Vector<const Id> other,
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
void bind_for(nb::class_<PairSums>& c) {
  c.def("sum", &PairSums::sum<Value, Id>, "indptr"_a.noconvert(), "other"_a.noconvert(),
        "weight"_a.noconvert(), "u"_a.noconvert(), "tau"_a, "out"_a.noconvert(),
        "Writes for each row the sum of weight * exp(tau * dot product) over its pairs.");
  c.def("derive", &PairSums::derive<Value, Id>, "indptr"_a.noconvert(), "other"_a.noconvert(),
        "weight"_a.noconvert(), "u"_a.noconvert(), "tau"_a, "grad"_a.noconvert(),
        "out"_a.noconvert(), "Writes the derivative of sum(grad * sums) by u.");
}

}  // namespace

void bind_pair_sums(nb::module_& m) {
  nb::class_<PairSums> c(m, "PairSums", "Sums of exponentials of cosines over pairs of rows.");
  c.def(nb::init<int, const std::string&>(), "threads"_a, "isa"_a = "auto");
  bind_for<float, int32_t>(c);
  bind_for<float, int64_t>(c);
  bind_for<double, int32_t>(c);
  bind_for<double, int64_t>(c);
}

}  // namespace gnnsys
