#include "gnnsys/rmat.hpp"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "bind.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

constexpr int64_t kMaxIds = int64_t{1} << 62;

template <class Index>
void bind_for(nb::module_& m) {
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

}  // namespace

void bind_rmat(nb::module_& m) {
  bind_for<int32_t>(m);
  bind_for<int64_t>(m);
  m.def("permute_ids", &permute, "key"_a, "num_ids"_a, "inverse"_a, "ids"_a.noconvert(),
        "Maps ids in place by the bijection of [0, num_ids) that `key` gives.");
}

}  // namespace gnnsys
