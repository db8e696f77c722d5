#include "gnnsys/keyed_dropout.hpp"

#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "bind.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 26;  // block numbers above are those of retries

template <class Value>
using Matrix = nb::ndarray<Value, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Value>
void bind_for(nb::module_& m) {
  m.def(
      "keyed_dropout",
      [](uint64_t key, uint32_t least, Value scale, Vector<const int64_t> vertices,
         Matrix<const Value> x, Matrix<Value> out, const std::string& isa) {
        if (x.shape(0) != vertices.size() || x.shape(0) != out.shape(0) ||
            x.shape(1) != out.shape(1)) {
          throw std::invalid_argument("keyed_dropout: arrays of different lengths");
        }
        if (static_cast<int64_t>(x.shape(1)) > kMaxWidth) {
          throw std::invalid_argument("keyed_dropout: rows of more than 2**26 columns");
        }
        const Isa chosen = parse_isa(isa);
        nb::gil_scoped_release release;
        keyed_dropout<Value>({key, least}, vertices.data(), static_cast<int64_t>(x.shape(0)),
                             static_cast<int64_t>(x.shape(1)), scale, x.data(), out.data(), chosen);
      },
      "key"_a, "least"_a, "scale"_a, "vertices"_a.noconvert(), "x"_a.noconvert(),
      "out"_a.noconvert(), "isa"_a = "auto",
      "Writes scale * x where a value's random word is at least `least`, else 0.");
}

}  // namespace

void bind_keyed_dropout(nb::module_& m) {
  bind_for<float>(m);
  bind_for<double>(m);
}

}  // namespace gnnsys
