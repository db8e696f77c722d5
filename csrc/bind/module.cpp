#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bind.hpp"
#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/gather.hpp"
#include "gnnsys/isa.hpp"
#include "gnnsys/sampler.hpp"
#include "gnnsys/thread_pool.hpp"
#include "gnnsys/topology.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using Ids = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>;

Ids to_numpy(IdArray&& array) {
  int64_t* const data = array.data();
  const std::size_t shape[1] = {static_cast<std::size_t>(array.size)};
  return Ids(data, 1, shape, hold(std::move(array.area)));
}

// Gathers rows into pooled or given memory. Addresses come as integers: the Python stores check
// what they point to, and rows may be of any dtype, also of those no array protocol knows.
class Gatherer {
 public:
  Gatherer(int threads, const std::string& isa, std::size_t retain)
      : threads_(threads), isa_(parse_isa(isa)), pool_(BufferPool::create(retain)) {}

  Bytes empty(std::size_t bytes) {
    std::shared_ptr<char> area = pool_->acquire(bytes);
    char* const data = area.get();
    return Bytes(data, 1, &bytes, hold(std::move(area)));
  }

  int64_t gather(uintptr_t rows, int64_t num_rows, int64_t row_bytes, int64_t stride, uintptr_t ids,
                 int id_bytes, int64_t n, uintptr_t out) {
    const RowTable table{reinterpret_cast<const char*>(rows), num_rows, row_bytes, stride};
    char* const to = reinterpret_cast<char*>(out);
    nb::gil_scoped_release release;
    if (id_bytes == 4) {
      return gather_rows(table, reinterpret_cast<const int32_t*>(ids), n, to, threads_, isa_);
    }
    return gather_rows(table, reinterpret_cast<const int64_t*>(ids), n, to, threads_, isa_);
  }

  int threads() const { return threads_.size(); }
  std::string isa() const { return isa_name(isa_); }
  std::size_t retained() const { return pool_->retained(); }

 private:
  ThreadPool threads_;
  const Isa isa_;
  std::shared_ptr<BufferPool> pool_;
};

using Indptr = Vector<const int64_t>;
using Indices = std::variant<Vector<const int32_t>, Vector<const int64_t>>;

CscGraph view_csc(const Indptr& indptr, const Indices& indices) {
  if (indptr.size() == 0)
    throw std::invalid_argument("indptr is empty: it needs nodes + 1 entries");
  return std::visit(
      [&](const auto& array) -> CscGraph {
        return {indptr.data(), array.data(), indices.index() == 1,
                static_cast<int64_t>(indptr.size()) - 1, static_cast<int64_t>(array.size())};
      },
      indices);
}

// The native sampler together with the arrays that it reads: those it was given, or what the
// conversion of an argument made of them.
class PlainSampler {
 public:
  PlainSampler(Indptr indptr, Indices indices, int threads, const std::string& isa)
      : indptr_(std::move(indptr)),
        indices_(std::move(indices)),
        sampler_(view_csc(indptr_, indices_), threads, parse_isa(isa)) {}

  nb::tuple sample(Vector<const int64_t> seeds, std::vector<int64_t> fanouts, bool replace,
                   uint64_t seed, uint64_t epoch, uint64_t group) {
    const SampleRequest request{
        seeds.data(), static_cast<int64_t>(seeds.size()), std::move(fanouts), replace, seed, epoch,
        group};
    SampledBatch batch;
    {
      nb::gil_scoped_release release;
      batch = sampler_.sample(request);
    }
    return nb::make_tuple(to_numpy(std::move(batch.node)), to_numpy(std::move(batch.row)),
                          to_numpy(std::move(batch.col)), to_numpy(std::move(batch.edge)),
                          batch.nodes_per_hop, batch.edges_per_hop);
  }

 private:
  Indptr indptr_;
  Indices indices_;
  Sampler sampler_;
};

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

}  // namespace
}  // namespace gnnsys

NB_MODULE(_core, m) {
  using namespace gnnsys;
  // Trainers and loaders live until the interpreter ends, when it no longer collects.
  nb::set_leak_warnings(false);
  m.doc() = "The compiled parts of gnnsys. Private: what is here changes without notice.";
  m.attr("__version__") = GNNSYS_VERSION;

  m.def(
      "isa", [] { return std::string(isa_name(supported_isas().back())); },
      "The instruction set that is used unless another is asked for.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : supported_isas()) names.emplace_back(isa_name(isa));
        return names;
      },
      "The instruction sets that this processor runs, slowest first.");

  nb::class_<Gatherer>(m, "Gatherer", "Gathers rows on a set of threads of its own.")
      .def(nb::init<int, const std::string&, std::size_t>(), "threads"_a, "isa"_a = "auto",
           "retain"_a = std::size_t{512} << 20)
      .def("empty", &Gatherer::empty, "nbytes"_a,
           "Uninitialised bytes at a 64-byte boundary, used again once they are let go.")
      .def("gather", &Gatherer::gather, "rows"_a, "num_rows"_a, "row_bytes"_a, "stride"_a, "ids"_a,
           "id_bytes"_a, "n"_a, "out"_a,
           "Copies rows to `out`; returns -1 or the first position whose id is outside the table.")
      .def_prop_ro("threads", &Gatherer::threads)
      .def_prop_ro("isa", &Gatherer::isa)
      .def_prop_ro("retained", &Gatherer::retained, "Unused bytes that wait for the next output.");

  nb::class_<PlainSampler>(m, "Sampler", "Uniform neighbour sampling over CSC.")
      .def(nb::init<Indptr, Indices, int, const std::string&>(), "indptr"_a, "indices"_a,
           "threads"_a = 1, "isa"_a = "auto", "The arrays are kept, not copied.")
      .def("sample", &PlainSampler::sample, "seeds"_a, "fanouts"_a, "replace"_a, "seed"_a,
           "epoch"_a, "group"_a,
           nb::sig("def sample(self, seeds: numpy.typing.NDArray[numpy.int64], fanouts: "
                   "list[int], replace: bool, seed: int, epoch: int, group: int) -> "
                   "tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64], "
                   "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64], "
                   "list[int], list[int]]"),
           "node, row, col, edge, nodes per hop, edges per hop of one batch.");

  bind_aggregate(m);
  bind_cache_planner(m);
  bind_edge_sort(m);
  bind_execute_plan(m);
  bind_file_reader(m);
  bind_graph_sampler(m);
  bind_keyed_dropout(m);
  bind_pair_sums(m);
  bind_rmat(m);
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
}
