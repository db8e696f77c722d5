#include "gnnsys/execute_plan.hpp"

#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bind.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

template <int Columns>
using PlanTable = nb::ndarray<const int32_t, nb::shape<-1, Columns>, nb::c_contig, nb::device::cpu>;

template <class Table>
Table32 view(const Table& table) {
  return {table.data(), static_cast<int64_t>(table.shape(0))};
}

// Moves the rows of one cache on a set of threads of its own; one call at a time.
class PlanExecutor {
 public:
  PlanExecutor(int threads, const std::string& isa) : threads_(threads), isa_(parse_isa(isa)) {}

  void execute(int64_t rows, PlanTable<2> hits, PlanTable<3> victim_in, PlanTable<3> fills,
               PlanTable<2> copies, PlanTable<2> victim_out, uintptr_t slots, int64_t num_slots,
               uintptr_t cells, int64_t num_cells, uintptr_t staging, Vector<const int64_t> staged,
               int64_t row_bytes, uintptr_t out) {
    const PlanView plan{rows,        view(hits),   view(victim_in),
                        view(fills), view(copies), view(victim_out)};
    const CacheMemory memory{reinterpret_cast<char*>(slots),         num_slots,
                             reinterpret_cast<char*>(cells),         num_cells,
                             reinterpret_cast<const char*>(staging), staged.data(),
                             static_cast<int64_t>(staged.size()),    row_bytes};
    nb::gil_scoped_release release;
    execute_plan(plan, memory, reinterpret_cast<char*>(out), threads_, isa_, scratch_);
  }

  void move(Vector<const int64_t> sources, Vector<const int64_t> targets, int64_t row_bytes) {
    if (sources.size() != targets.size()) {
      throw std::invalid_argument("move: addresses of different number");
    }
    nb::gil_scoped_release release;
    move_rows(sources.data(), targets.data(), static_cast<int64_t>(sources.size()), row_bytes,
              threads_);
  }

 private:
  ThreadPool threads_;
  const Isa isa_;
  std::vector<int64_t> scratch_;
};

}  // namespace

void bind_execute_plan(nb::module_& m) {
  nb::class_<PlanExecutor>(m, "PlanExecutor", "Carries out the plans of one cache.")
      .def(nb::init<int, const std::string&>(), "threads"_a, "isa"_a = "auto")
      .def("execute", &PlanExecutor::execute, "rows"_a, "hits"_a, "victim_in"_a, "fills"_a,
           "copies"_a, "victim_out"_a, "slots"_a, "num_slots"_a, "cells"_a, "num_cells"_a,
           "staging"_a, "staged"_a, "row_bytes"_a, "out"_a,
           "Gathers a batch into `out` and moves rows between slots, cells and staging memory.")
      .def("move", &PlanExecutor::move, "sources"_a, "targets"_a, "row_bytes"_a,
           "Copies rows from addresses to addresses.");
}

}  // namespace gnnsys
