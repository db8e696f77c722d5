#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind.hpp"
#include "coding.hpp"
#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/errors.hpp"
#include "gnnsys/isa.hpp"
#include "gnnsys/rows/bit_masks.hpp"
#include "gnnsys/rows/gather.hpp"
#include "gnnsys/rows/keyed_dropout.hpp"
#include "gnnsys/thread_pool.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

Bytes pooled_bytes(std::size_t bytes) {
  std::shared_ptr<char> area = BufferPool::shared()->acquire(bytes);
  char* const data = area.get();
  return Bytes(data, 1, &bytes, hold(std::move(area)));
}

// Addresses come as integers: the Python stores check what they point to, and rows may be of any
// dtype, also of those no array protocol knows.
class Gatherer {
 public:
  Gatherer(ThreadPool threads, const std::string& isa) : threads_(threads), isa_(parse_isa(isa)) {}

  int64_t gather(uintptr_t rows, int64_t num_rows, int64_t row_bytes, int64_t stride, uintptr_t ids,
                 int id_bytes, int64_t n, uintptr_t out, const BoundCoding* coding) {
    const RowTable table{reinterpret_cast<const char*>(rows), num_rows, row_bytes, stride};
    const RowCoding* const given = coding == nullptr ? nullptr : &coding->of_rows(row_bytes);
    const auto gather = [&](const auto* first) {
      return gather_rows(table, first, n, reinterpret_cast<char*>(out), threads_, isa_, given);
    };
    nb::gil_scoped_release release;
    return id_bytes == 4 ? gather(reinterpret_cast<const int32_t*>(ids))
                         : gather(reinterpret_cast<const int64_t*>(ids));
  }

  int threads() const { return threads_.size(); }

 private:
  const ThreadPool threads_;
  const Isa isa_;
};

std::pair<Bytes, int64_t> encode(const BoundCoding& self, Matrix<const float> rows) {
  const RowCoding& coding = self.coding();
  require(coding.has_codes() && static_cast<int64_t>(rows.shape(1)) == coding.columns,
          "encode: rows of other columns, or no codes");
  const auto n = static_cast<int64_t>(rows.shape(0));
  Bytes out = pooled_bytes(rows.shape(0) * static_cast<std::size_t>(coding.row_bytes()));
  int64_t bad = -1;
  {
    nb::gil_scoped_release release;
    bad = encode_rows(coding, rows.data(), n, reinterpret_cast<char*>(out.data()));
  }
  return {std::move(out), bad};
}

constexpr int64_t kDecoded = int64_t{1} << 16;  // rows at a time, so that few ids say which

void decode(const BoundCoding& self, uintptr_t rows, int64_t n, uintptr_t out, ThreadPool threads) {
  const RowCoding& coding = self.coding();
  const int64_t row_bytes = coding.row_bytes();
  std::vector<int64_t> ids(static_cast<std::size_t>(std::min(n, kDecoded)));
  std::iota(ids.begin(), ids.end(), 0);
  for (int64_t first = 0; first < n; first += kDecoded) {
    const int64_t count = std::min(n - first, kDecoded);
    const RowTable table{reinterpret_cast<const char*>(rows) + first * row_bytes, count, row_bytes,
                         row_bytes};
    char* const to = reinterpret_cast<char*>(out) + first * coding.columns * sizeof(float);
    gather_rows(table, ids.data(), count, to, threads, parse_isa("auto"), &coding);
  }
}

constexpr int64_t kMaxWidth = int64_t{1} << 26;  // block numbers above are those of retries

template <class Value>
void bind_keyed_dropout(nb::module_& m) {
  m.def(
      "keyed_dropout",
      [](uint64_t key, uint32_t least, Value scale, Vector<const int64_t> vertices,
         Matrix<const Value> x, Matrix<Value> out, const std::string& isa) {
        require(x.shape(0) == vertices.size() && x.shape(0) == out.shape(0) &&
                    x.shape(1) == out.shape(1),
                "keyed_dropout: arrays of different lengths");
        require(static_cast<int64_t>(x.shape(1)) <= kMaxWidth,
                "keyed_dropout: rows of more than 2**26 columns");
        const Isa chosen = parse_isa(isa);
        nb::gil_scoped_release release;
        keyed_dropout<Value>({key, least}, vertices.data(), static_cast<int64_t>(x.shape(0)),
                             static_cast<int64_t>(x.shape(1)), scale, x.data(), out.data(), chosen);
      },
      "key"_a, "least"_a, "scale"_a, "vertices"_a.noconvert(), "x"_a.noconvert(),
      "out"_a.noconvert(), "isa"_a = "auto",
      "Writes scale * x where a value's random word is at least `least`, else 0.");
}

void require_bits(std::size_t bytes, int64_t n) {
  require(n >= 0 && static_cast<int64_t>(bytes) == (n + 7) / 8,
          "bit masks: bits of another number of elements");
}

void bind_bit_masks(nb::module_& m) {
  m.def(
      "pack_signs",
      [](int bytes, uint64_t infinity, bool counts_nan, uintptr_t data, int64_t n,
         Vector<uint8_t> bits, int threads) {
        require_bits(bits.size(), n);
        nb::gil_scoped_release release;
        pack_signs(bytes, infinity, counts_nan ? Sign::not_negative : Sign::positive, data, n,
                   bits.data(), ThreadPool(threads));
      },
      "bytes"_a, "infinity"_a, "counts_nan"_a, "data"_a, "n"_a, "bits"_a.noconvert(), "threads"_a,
      "Packs which of n floating point numbers at an address are above 0, or NaN.");
  m.def(
      "pack_two_values",
      [](int bytes, uintptr_t data, int64_t n, Vector<uint8_t> bits, int threads) {
        require_bits(bits.size(), n);
        nb::gil_scoped_release release;
        return pack_two_values(bytes, data, n, bits.data(), ThreadPool(threads));
      },
      "bytes"_a, "data"_a, "n"_a, "bits"_a.noconvert(), "threads"_a,
      "Packs which of n elements at an address are not 0; returns the pattern of those, or None "
      "where they differ.");
  m.def(
      "unpack_bits",
      [](int bytes, Vector<const uint8_t> bits, int64_t n, uint64_t one, uintptr_t out,
         int threads) {
        require_bits(bits.size(), n);
        nb::gil_scoped_release release;
        unpack_bits(bytes, bits.data(), n, one, out, ThreadPool(threads));
      },
      "bytes"_a, "bits"_a.noconvert(), "n"_a, "one"_a, "out"_a, "threads"_a,
      "Writes n elements to an address: the pattern `one` where a bit is set, else 0.");
}

}  // namespace

void bind_rows(nb::module_& m) {
  nb::class_<BoundCoding>(m, "RowCoding", "How rows of float32 are stored in fewer bytes.")
      .def(nb::init<const std::string&, int64_t, std::vector<float>>(), "stored"_a, "columns"_a,
           "scales"_a = std::vector<float>())
      .def_prop_ro(
          "row_bytes", [](const BoundCoding& self) { return self.coding().row_bytes(); },
          "Of a stored row.")
      .def("encode", &encode, "rows"_a.noconvert(),
           "The bytes of (n, columns) rows as codes of int8 or int4, and -1 or the first of their "
           "values that is NaN or infinite.")
      .def("decode", &decode, "rows"_a, "n"_a, "out"_a, "threads"_a, Freely(),
           "Writes the (n, columns) float32 of n dense stored rows to `out`.");
  nb::class_<Gatherer>(m, "Gatherer", "Gathers rows on threads of the process.")
      .def(nb::init<ThreadPool, const std::string&>(), "threads"_a, "isa"_a = "auto")
      .def("gather", &Gatherer::gather, "rows"_a, "num_rows"_a, "row_bytes"_a, "stride"_a, "ids"_a,
           "id_bytes"_a, "n"_a, "out"_a, "coding"_a.none() = nb::none(),
           "Copies rows to `out`, or decodes them there; returns -1 or the first position whose id "
           "is outside the table.")
      .def_prop_ro("threads", &Gatherer::threads);
  m.def("pooled_bytes", &pooled_bytes, "nbytes"_a,
        "Uninitialised bytes at a 64-byte boundary, used again once they are let go.");
  bind_keyed_dropout<float>(m);
  bind_keyed_dropout<double>(m);
  bind_bit_masks(m);
}

}  // namespace gnnsys
