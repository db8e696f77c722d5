#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind.hpp"
#include "gnnsys/cache/execute_plan.hpp"
#include "gnnsys/cache/planner.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

template <class T>
nb::capsule hold_vector(std::vector<T>* values) {
  return nb::capsule(values, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
}

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> to_array(std::vector<T>&& values) {
  auto* const kept = new std::vector<T>(std::move(values));
  const std::size_t shape[1] = {kept->size()};
  return {kept->data(), 1, shape, hold_vector(kept)};
}

nb::ndarray<nb::numpy, int32_t, nb::ndim<2>> to_table(std::vector<int32_t>&& values,
                                                      std::size_t columns) {
  auto* const kept = new std::vector<int32_t>(std::move(values));
  const std::size_t shape[2] = {kept->size() / columns, columns};
  return {kept->data(), 2, shape, hold_vector(kept)};
}

// Calls from several threads take turns, with the interpreter free meanwhile.
class BoundPlanner {
 public:
  using Scores = std::optional<Vector<const uint16_t>>;

  BoundPlanner(CacheSetting setting, Scores scores)
      : scores_(std::move(scores)), planner_(with_scores(std::move(setting), scores_)) {}

  template <class F>
  auto call(F&& f) {
    nb::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    return f(planner_);
  }

 private:
  static CacheSetting with_scores(CacheSetting setting, const Scores& scores) {
    setting.scores = scores ? scores->data() : nullptr;
    return setting;
  }

  std::mutex mutex_;
  const Scores scores_;  // the planner reads them
  CachePlanner planner_;
};

nb::tuple plan(BoundPlanner& self) {
  CachePlan plan = self.call([](CachePlanner& planner) { return planner.plan(); });
  return nb::make_tuple(plan.batch, plan.rows, to_table(std::move(plan.hits), 2),
                        to_table(std::move(plan.victim_in), 3), to_table(std::move(plan.fills), 3),
                        to_table(std::move(plan.copies), 2), to_array(std::move(plan.reads)),
                        to_table(std::move(plan.victim_out), 2), plan.drops, plan.evictions);
}

template <class Id>
void bind_ids(nb::class_<BoundPlanner>& planner) {
  planner.def(
      "announce",
      [](BoundPlanner& self, Vector<const Id> ids) {
        return self.call([&](CachePlanner& planner) {
          return planner.announce(ids.data(), static_cast<int64_t>(ids.size()));
        });
      },
      "ids"_a.noconvert(), "Returns -1, or the first position whose id is outside the table.");
  planner.def(
      "committed_slots",
      [](BoundPlanner& self, Vector<const Id> ids, Vector<int32_t> slots) {
        if (slots.size() != ids.size()) {
          throw std::invalid_argument("committed_slots: arrays of different lengths");
        }
        return self.call([&](CachePlanner& planner) {
          return planner.committed_slots(ids.data(), static_cast<int64_t>(ids.size()),
                                         slots.data());
        });
      },
      "ids"_a.noconvert(), "slots"_a.noconvert(),
      "Returns -1, or the first position whose id is outside the table.");
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

void bind_cache(nb::module_& m) {
  nb::class_<BoundPlanner> planner(m, "CachePlanner", "Plans a cache that knows the next batches.");
  planner.def(
      "__init__",
      [](BoundPlanner* self, int64_t num_rows, int64_t capacity, const std::string& policy,
         int64_t window, BoundPlanner::Scores scores, int64_t victim_cells, bool prefill) {
        if (scores && static_cast<int64_t>(scores->size()) != num_rows) {
          throw std::invalid_argument("CachePlanner: not one score a row");
        }
        new (self) BoundPlanner({num_rows, capacity, parse_cache_policy(policy), window, nullptr,
                                 victim_cells, prefill},
                                std::move(scores));
      },
      "num_rows"_a, "capacity"_a, "policy"_a, "window"_a, "scores"_a.none(), "victim_cells"_a,
      "prefill"_a);
  bind_ids<int32_t>(planner);
  bind_ids<int64_t>(planner);
  planner
      .def("plan", &plan,
           nb::sig("def plan(self) -> tuple[int, int, numpy.typing.NDArray[numpy.int32], "
                   "numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32], "
                   "numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int64], "
                   "numpy.typing.NDArray[numpy.int32], int, int]"),
           "The fields of the next batch's BatchPlan.")
      .def(
          "commit",
          [](BoundPlanner& self, int64_t batch) {
            self.call([&](CachePlanner& planner) { planner.commit(batch); });
          },
          "batch"_a)
      .def(
          "retract",
          [](BoundPlanner& self, int64_t batch) {
            self.call([&](CachePlanner& planner) { planner.retract(batch); });
          },
          "batch"_a)
      .def_prop_ro(
          "prefilled",
          [](BoundPlanner& self) {
            return to_array(self.call([](CachePlanner& planner) { return planner.prefilled(); }));
          },
          nb::sig("def prefilled(self) -> numpy.typing.NDArray[numpy.int64]"), nb::rv_policy::move)
      .def_prop_ro("announced",
                   [](BoundPlanner& self) {
                     return self.call([](CachePlanner& planner) { return planner.announced(); });
                   })
      .def_prop_ro("planned",
                   [](BoundPlanner& self) {
                     return self.call([](CachePlanner& planner) { return planner.planned(); });
                   })
      .def_prop_ro("committed",
                   [](BoundPlanner& self) {
                     return self.call([](CachePlanner& planner) { return planner.committed(); });
                   })
      .def_prop_ro("state_bytes", [](BoundPlanner& self) {
        return self.call([](CachePlanner& planner) { return planner.state_bytes(); });
      });
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
