#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "bind.hpp"
#include "gnnsys/isa.hpp"

namespace nb = nanobind;

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

  bind_cache(m);
  bind_graph(m);
  bind_io(m);
  bind_rows(m);
  bind_sampler(m);
}
