#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.hpp"
#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/errors.hpp"
#include "gnnsys/isa.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

void translate(const std::exception_ptr& thrown, void*) {
  const auto set = [](const char* name, const std::exception& found, int code = 0) {
    nb::object error = nb::module_::import_("gnnsys.errors").attr(name)(found.what());
    if (code) error.attr("errno") = code;
    PyErr_SetObject(error.type().ptr(), error.ptr());
  };
  try {
    std::rethrow_exception(thrown);
  } catch (const gnnsys::ResourceError& found) {
    set("ResourceError", found, found.code());
  } catch (const gnnsys::ReadError& found) {
    const nb::object make = nb::module_::import_("gnnsys.memory.table_file").attr("read_error");
    const nb::object error = make(found.path(), found.place(), found.code());
    PyErr_SetObject(error.type().ptr(), error.ptr());
  } catch (const std::invalid_argument& found) {
    set("ArgumentError", found);
  } catch (const std::out_of_range& found) {
    set("RowIndexError", found);
  }
}

nb::dict runtime_bytes() {
  const auto found = gnnsys::BufferPool::shared()->bytes();
  nb::dict named;
  named["outputs"] = found.outputs;
  named["staging"] = found.staging;
  named["retained"] = found.retained;
  return named;
}

}  // namespace

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

  nb::register_exception_translator(translate);
  m.def("runtime_bytes", &runtime_bytes, nb::sig("def runtime_bytes() -> dict[str, int]"),
        "Bytes of this process's pooled memory. outputs: handed out to gathered rows and sampled "
        "batches; staging: handed out for reads of files; retained: unused, for the next of both.");
  m.def(
      "set_retention",
      [](std::size_t bytes) { gnnsys::BufferPool::shared()->set_retention(bytes); },
      "bytes"_a = BufferPool::kRetained, Freely(),
      "Keeps at most so many unused bytes of pooled memory from now on, as much as at first.");

  bind_cache(m);
  bind_graph(m);
  bind_io(m);
  bind_launch(m);
  bind_rows(m);
  bind_sampler(m);
}
