#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bind.hpp"
#include "gnnsys/errors.hpp"
#include "gnnsys/sampler/neighbor_file.hpp"
#include "gnnsys/sampler/sampler.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

using Ids = Vector<const int64_t>;
using Indices = std::variant<Vector<const int32_t>, Vector<const int64_t>>;
using RelationArrays = std::tuple<int, int, Ids, Indices>;
using Times = std::vector<std::optional<Ids>>;
using Weights = std::vector<std::optional<Vector<const double>>>;
using Files = std::vector<std::optional<std::shared_ptr<NeighborFile>>>;
using Seeds = std::tuple<int, Ids, std::optional<Ids>>;
using NumpyIds = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>;
using NumpyEdgeIndex = nb::ndarray<nb::numpy, int64_t, nb::shape<2, -1>>;

void check_size(const char* what, std::size_t number, int64_t size, int64_t expected) {
  if (size == expected) return;
  throw std::invalid_argument(std::string(what) + " " + std::to_string(number) + " has " +
                              std::to_string(size) + " entries, expected " +
                              std::to_string(expected));
}

void check_count(const char* what, std::size_t count, int64_t expected, const char* of) {
  if (static_cast<int64_t>(count) == expected) return;
  throw std::invalid_argument(std::string(what) + " has " + std::to_string(count) +
                              " entries for " + std::to_string(expected) + " " + of);
}

// An array without entries may have no address, and null stands for no array.
template <class T>
const T* address(const std::optional<Vector<const T>>& array) {
  static const T empty{};
  if (!array) return nullptr;
  return array->size() ? array->data() : &empty;
}

template <class T>
const T* checked(const char* what, const std::vector<std::optional<Vector<const T>>>& arrays,
                 std::size_t number, int64_t expected) {
  if (arrays[number]) {
    check_size(what, number, static_cast<int64_t>(arrays[number]->size()), expected);
  }
  return address(arrays[number]);
}

// The native sampler together with the arrays that it reads.
class BoundSampler {
 public:
  BoundSampler(std::vector<int64_t> num_nodes, std::vector<RelationArrays> relations,
               Times node_time, Times edge_time, Weights edge_weight, int threads,
               const std::string& isa, Files files)
      : relations_(std::move(relations)),
        node_time_(std::move(node_time)),
        edge_time_(std::move(edge_time)),
        edge_weight_(std::move(edge_weight)),
        files_(std::move(files)),
        sampler_(view(std::move(num_nodes)), threads, parse_isa(isa)) {}

  nb::tuple sample(const std::vector<Seeds>& seeds, std::vector<std::vector<int64_t>> fanouts,
                   bool replace, bool disjoint, bool last, bool labor, uint64_t seed,
                   uint64_t epoch, uint64_t group, uint64_t first_hop, std::vector<int64_t> window,
                   std::vector<int64_t> newest) {
    SampleRequest request{
        {},    std::move(fanouts), replace,           disjoint,         last, labor, seed, epoch,
        group, first_hop,          std::move(window), std::move(newest)};
    for (const auto& [type, ids, times] : seeds) {
      if (times) {
        check_size("times of seeds of type", type, static_cast<int64_t>(times->size()),
                   static_cast<int64_t>(ids.size()));
      }
      request.seeds.push_back({type, ids.data(), static_cast<int64_t>(ids.size()), address(times)});
    }
    TypedBatch batch;
    {
      nb::gil_scoped_release release;
      batch = sampler_.sample(request);
    }
    return nb::make_tuple(list_ids(batch.node),
                          disjoint ? nb::object(list_ids(batch.batch)) : nb::none(),
                          list_edges(batch.edge_index), list_ids(batch.edge), batch.nodes_per_hop,
                          batch.edges_per_hop);
  }

  nb::tuple induce(const std::vector<Ids>& nodes) {
    std::vector<std::span<const int64_t>> spans;
    for (const Ids& ids : nodes) spans.emplace_back(ids.data(), ids.size());
    InducedEdges induced;
    {
      nb::gil_scoped_release release;
      induced = sampler_.induce(spans);
    }
    return nb::make_tuple(list_edges(induced.edge_index), list_ids(induced.edge));
  }

 private:
  TypedGraph view(std::vector<int64_t> num_nodes) const {
    const auto types = static_cast<int64_t>(num_nodes.size());
    const auto relations = static_cast<int64_t>(relations_.size());
    check_count("node_time", node_time_.size(), types, "node types");
    check_count("edge_time", edge_time_.size(), relations, "relations");
    check_count("edge_weight", edge_weight_.size(), relations, "relations");
    if (!files_.empty()) check_count("files", files_.size(), relations, "relations");
    TypedGraph graph{std::move(num_nodes), {}, {}};
    for (std::size_t t = 0; t < node_time_.size(); ++t) {
      graph.node_time.push_back(checked("node_time", node_time_, t, graph.num_nodes[t]));
    }
    for (std::size_t r = 0; r < relations_.size(); ++r) {
      const auto& [source, target, indptr, indices] = relations_[r];
      if (target >= 0 && target < types) {
        check_size("indptr of relation", r, static_cast<int64_t>(indptr.size()),
                   graph.num_nodes[target] + 1);
      }
      const bool wide = indices.index() == 1;
      const auto [data, edges] = std::visit(
          [](const auto& array) -> std::pair<const void*, int64_t> {
            return {array.data(), static_cast<int64_t>(array.size())};
          },
          indices);
      graph.relations.push_back({source, target, indptr.data(), data, wide, edges,
                                 checked("edge_time", edge_time_, r, edges),
                                 checked("edge_weight", edge_weight_, r, edges),
                                 files_.empty() || !files_[r] ? nullptr : files_[r]->get()});
      if (const NeighborFile* const file = graph.relations.back().file) {
        require(file->size() == edges && file->wide() == wide,
                "files: neighbours of another number or type than indices");
      }
    }
    return graph;
  }

  static nb::list list_ids(std::vector<IdArray>& arrays) {
    nb::list list;
    for (IdArray& array : arrays) {
      const std::size_t shape[1] = {static_cast<std::size_t>(array.size)};
      int64_t* const data = array.data();
      list.append(NumpyIds(data, 1, shape, hold(std::move(array.area))));
    }
    return list;
  }

  static nb::list list_edges(std::vector<EdgeIndex>& arrays) {
    nb::list list;
    for (EdgeIndex& array : arrays) {
      const std::size_t shape[2] = {2, static_cast<std::size_t>(array.size / 2)};
      int64_t* const data = array.data();
      list.append(NumpyEdgeIndex(data, 2, shape, hold(std::move(array.area))));
    }
    return list;
  }

  std::vector<RelationArrays> relations_;
  Times node_time_, edge_time_;
  Weights edge_weight_;
  Files files_;
  Sampler sampler_;
};

}  // namespace

void bind_sampler(nb::module_& m) {
  nb::class_<NeighborFile>(m, "NeighborFile",
                           "Neighbours in a file: some in memory, others read when drawn.")
      .def(
          "__init__",
          [](NeighborFile* self, std::string path, int handle, int64_t size, int64_t offset,
             bool wide, bool uring, int depth) {
            new (self) NeighborFile(std::move(path), handle, size, offset, wide,
                                    ReaderOptions{.depth = depth},
                                    uring ? make_uring_backend : make_thread_backend);
          },
          "path"_a, "handle"_a, "size"_a, "offset"_a, "wide"_a, "uring"_a, "depth"_a = 128)
      .def("keep", &NeighborFile::keep, "blocks"_a, Freely(),
           "Brings blocks of 4096 bytes into memory, whose numbers ascend strictly.")
      .def_prop_ro("blocks", &NeighborFile::blocks, "That may be kept.")
      .def(
          "counts",
          [](const NeighborFile& self) {
            const NeighborFile::Counts found = self.counts();
            return std::make_tuple(found.kept, found.read, found.requests, found.pages, found.bytes,
                                   found.nanoseconds_waited);
          },
          "Neighbours of memory and of the file; requests, pages, bytes, nanoseconds waited.");
  m.def("weigh_blocks", &weigh_blocks, "indptr"_a, "importance"_a.none(), "fanout"_a, "per_block"_a,
        "weight"_a, Freely(),
        "Fills weight with how often a run draws from each block of neighbours, up to a factor.");

  nb::class_<BoundSampler>(m, "Sampler",
                           "Neighbour sampling over typed graphs with times and weights.")
      .def(nb::init<std::vector<int64_t>, std::vector<RelationArrays>, Times, Times, Weights, int,
                    const std::string&, Files>(),
           "num_nodes"_a, "relations"_a, "node_time"_a, "edge_time"_a, "edge_weight"_a,
           "threads"_a = 1, "isa"_a = "auto", "files"_a = Files(),
           "Relations are (source type, target type, indptr, indices): a CSC of the targets' "
           "in-neighbours. Times of nodes are given per type, times and weights of edges per "
           "relation, by position in the CSC. The arrays are kept, not copied. files: what reads "
           "the neighbours of a relation instead, or None.")
      .def("sample", &BoundSampler::sample, "seeds"_a, "fanouts"_a, "replace"_a, "disjoint"_a,
           "last"_a, "labor"_a, "seed"_a, "epoch"_a, "group"_a, "first_hop"_a = 0,
           "window"_a = std::vector<int64_t>(), "newest"_a = std::vector<int64_t>(),
           nb::sig("def sample(self, seeds: collections.abc.Sequence[tuple[int, "
                   "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64] | None]], "
                   "fanouts: collections.abc.Sequence[collections.abc.Sequence[int]], replace: "
                   "bool, disjoint: bool, last: bool, labor: bool, seed: int, epoch: int, group: "
                   "int, first_hop: int = 0, window: collections.abc.Sequence[int] = [], newest: "
                   "collections.abc.Sequence[int] = []) -> "
                   "tuple[list[numpy.typing.NDArray[numpy.int64]], "
                   "list[numpy.typing.NDArray[numpy.int64]] | None, "
                   "list[numpy.typing.NDArray[numpy.int64]], "
                   "list[numpy.typing.NDArray[numpy.int64]], list[list[int]], list[list[int]]]"),
           "node and batch per type, edge_index (2, edges) and edge per relation, nodes per type "
           "and hop, edges per relation and hop. Seeds are (type, ids, times), fanouts per "
           "relation and hop. The seeds draw as nodes of hop first_hop do. Of edges with times, "
           "those older than their seed by more than the relation's window, and all but the "
           "newest, are left out; -1, or an empty list, sets no limit.")
      .def_static("map_bytes", &Sampler::map_bytes, "num_nodes"_a, "batch_nodes"_a,
                  "About what finding the places of a type's nodes takes for each batch that is "
                  "sampled at once.")
      .def("induce", &BoundSampler::induce, "node"_a,
           nb::sig("def induce(self, node: "
                   "collections.abc.Sequence[numpy.typing.NDArray[numpy.int64]]) -> "
                   "tuple[list[numpy.typing.NDArray[numpy.int64]], "
                   "list[numpy.typing.NDArray[numpy.int64]]]"),
           "edge_index and edge per relation: all edges between the nodes, given per type.");
}

}  // namespace gnnsys
