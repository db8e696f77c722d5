#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bind.hpp"
#include "coding.hpp"
#include "gnnsys/cache/execute_plan.hpp"
#include "gnnsys/cache/planner.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

nb::ndarray<nb::numpy, int32_t, nb::ndim<2>> to_table(std::vector<int32_t>&& values,
                                                      std::size_t columns) {
  int32_t* const data = values.data();
  const std::size_t shape[2] = {values.size() / columns, columns};
  return {data, 2, shape, hold(std::move(values))};
}

// Calls from several threads take turns, with the interpreter free meanwhile.
class BoundPlanner {
 public:
  using Importance = std::optional<Vector<const uint16_t>>;

  BoundPlanner(int64_t num_rows, int64_t capacity, const std::string& policy, int64_t window,
               const Importance& importance, int64_t victim_cells, bool prefill)
      : planner_(make_cache_planner({num_rows, capacity, parse_cache_policy(policy), window,
                                     importance ? importance->data() : nullptr, victim_cells,
                                     prefill})) {}

  template <class F>
  auto call(F&& f) {
    nb::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    return f(*planner_);
  }

 private:
  std::mutex mutex_;
  const std::unique_ptr<CachePlanner> planner_;
};

// A method of the planner as one of the bound planner.
template <class Result, class... Args>
auto bound(Result (CachePlanner::*method)(Args...)) {
  return [method](BoundPlanner& self, Args... args) {
    return self.call([&](CachePlanner& planner) { return (planner.*method)(args...); });
  };
}
template <class Result>
auto bound(Result (CachePlanner::*method)() const) {
  return [method](BoundPlanner& self) {
    return self.call([&](CachePlanner& planner) { return (planner.*method)(); });
  };
}

nb::tuple plan(BoundPlanner& self) {
  CachePlan plan = bound(&CachePlanner::plan)(self);
  return nb::make_tuple(plan.batch, plan.rows, to_table(std::move(plan.hits), 2),
                        to_table(std::move(plan.victim_in), 3), to_table(std::move(plan.fills), 3),
                        to_table(std::move(plan.copies), 2), to_array(std::move(plan.reads)),
                        to_table(std::move(plan.victim_out), 2), plan.drops, plan.evictions);
}

template <class Id>
int64_t announce(BoundPlanner& self, std::span<const Id> ids) {
  return self.call([&](CachePlanner& planner) { return planner.announce(ids); });
}

template <int Columns>
using PlanTable = nb::ndarray<const int32_t, nb::shape<-1, Columns>, nb::c_contig, nb::device::cpu>;

template <class Table>
Table32 view(const Table& table) {
  return {table.data(), static_cast<int64_t>(table.shape(0))};
}

// Moves the rows of one cache on a set of threads of its own; one call at a time.
class PlanExecutor {
 public:
  PlanExecutor(ThreadPool threads, const std::string& isa)
      : threads_(threads), isa_(parse_isa(isa)) {}

  void execute(int64_t rows, PlanTable<2> hits, PlanTable<3> victim_in, PlanTable<3> fills,
               PlanTable<2> copies, PlanTable<2> victim_out, uintptr_t slots, int64_t num_slots,
               uintptr_t cells, int64_t num_cells, uintptr_t staging, Vector<const int64_t> staged,
               int64_t row_bytes, uintptr_t out, const BoundCoding* coding) {
    const PlanView plan{rows,        view(hits),   view(victim_in),
                        view(fills), view(copies), view(victim_out)};
    const CacheMemory memory{reinterpret_cast<char*>(slots),         num_slots,
                             reinterpret_cast<char*>(cells),         num_cells,
                             reinterpret_cast<const char*>(staging), staged.data(),
                             static_cast<int64_t>(staged.size()),    row_bytes};
    const RowCoding* const given = coding == nullptr ? nullptr : &coding->of_rows(row_bytes);
    nb::gil_scoped_release release;
    execute_plan(plan, memory, reinterpret_cast<char*>(out), threads_, isa_, scratch_, given);
  }

  void move(std::span<const int64_t> sources, std::span<const int64_t> targets, int64_t row_bytes) {
    move_rows(sources, targets, row_bytes, threads_);
  }

 private:
  ThreadPool threads_;
  const Isa isa_;
  std::vector<int64_t> scratch_;
};

}  // namespace

void bind_cache(nb::module_& m) {
  nb::class_<BoundPlanner>(m, "CachePlanner", "Plans a cache that knows the next batches.")
      .def(nb::init<int64_t, int64_t, const std::string&, int64_t, const BoundPlanner::Importance&,
                    int64_t, bool>(),
           "num_rows"_a, "capacity"_a, "policy"_a, "window"_a, "importance"_a.none(),
           "victim_cells"_a, "prefill"_a)
      .def("announce", &announce<int32_t>, "ids"_a.noconvert())
      .def("announce", &announce<int64_t>, "ids"_a.noconvert())
      .def("plan_fields", &plan,
           nb::sig("def plan_fields(self) -> tuple[int, int, numpy.typing.NDArray[numpy.int32], "
                   "numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32], "
                   "numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int64], "
                   "numpy.typing.NDArray[numpy.int32], int, int]"),
           "Those of the next batch's BatchPlan.")
      .def("commit", bound(&CachePlanner::commit), "batch"_a,
           "Says that the plan of ``batch`` was carried out, so that it is never undone.\n\n"
           "Raises:\n    ArgumentError: it is not the next to be committed, or is not planned.")
      .def("retract", bound(&CachePlanner::retract), "batch"_a,
           "Takes back the announcements from ``batch`` on and undoes their plans.\n\n"
           "Batch numbers start again from ``batch``. Rows whose next use is taken back have none "
           "then, and cells of the victim buffer that were held for it are free.\n\n"
           "Raises:\n    ArgumentError: ``batch`` is committed or not announced.")
      .def(
          "committed_slots",
          [](BoundPlanner& self, std::span<const int64_t> ids) {
            return to_array(
                self.call([&](CachePlanner& planner) { return planner.committed_slots(ids); }));
          },
          nb::sig("def committed_slots(self, ids: numpy.typing.NDArray[numpy.int64]) -> "
                  "numpy.typing.NDArray[numpy.int32]"),
          "(n,) the slot of each of (n,) ids by the committed plans, -1 where it has none.\n\n"
          "Raises:\n    RowIndexError: an id is outside the table.")
      .def_prop_ro(
          "prefilled",
          [](BoundPlanner& self) { return to_array(bound(&CachePlanner::prefilled)(self)); },
          nb::sig("def prefilled(self) -> numpy.typing.NDArray[numpy.int64]"), nb::rv_policy::move,
          "(k,) ascending: slot j is to hold the row ``prefilled[j]`` before batch 0.")
      .def_prop_ro("announced", bound(&CachePlanner::announced),
                   "Batches announced, which is the number of the next one.")
      .def_prop_ro("planned", bound(&CachePlanner::planned),
                   "Batches planned, which is the number of the next one.")
      .def_prop_ro("committed", bound(&CachePlanner::committed),
                   "Batches committed, which is the number of the next one.")
      .def_prop_ro("state_bytes", bound(&CachePlanner::state_bytes),
                   "Bytes of memory that the planner takes.");
  nb::class_<PlanExecutor>(m, "PlanExecutor", "Carries out the plans of one cache.")
      .def(nb::init<ThreadPool, const std::string&>(), "threads"_a, "isa"_a = "auto")
      .def("execute", &PlanExecutor::execute, "rows"_a, "hits"_a, "victim_in"_a, "fills"_a,
           "copies"_a, "victim_out"_a, "slots"_a, "num_slots"_a, "cells"_a, "num_cells"_a,
           "staging"_a, "staged"_a, "row_bytes"_a, "out"_a, "coding"_a.none() = nb::none(),
           "Gathers a batch into `out`, decoded where a coding is given, and moves rows between "
           "slots, cells and staging memory.")
      .def("move", &PlanExecutor::move, "sources"_a, "targets"_a, "row_bytes"_a, Freely(),
           "Copies rows from addresses to addresses.");
}

}  // namespace gnnsys
