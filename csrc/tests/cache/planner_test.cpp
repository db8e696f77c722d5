// The cache planner, by what must hold for any plan; tests/property holds the plans themselves.
#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "gnnsys/cache/planner.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

constexpr int32_t kRows = 60;

using Slots = std::vector<int64_t>;  // row, or -1

// Carries a plan out on slots and cells that hold the number of their row.
void execute(const CachePlan& plan, const std::vector<int32_t>& ids, Slots& slots, Slots& cells) {
  std::vector<int64_t> out(ids.size(), -1);
  std::set<int32_t> read;
  for (std::size_t i = 0; i < plan.hits.size(); i += 2) {
    out[plan.hits[i]] = slots[plan.hits[i + 1]];
  }
  for (std::size_t i = 0; i < plan.victim_in.size(); i += 3) {
    out[plan.victim_in[i]] = cells[plan.victim_in[i + 1]];
    read.insert(plan.victim_in[i + 1]);
  }
  for (std::size_t i = 0; i < plan.fills.size(); i += 3) {
    out[plan.fills[i]] = plan.reads[plan.fills[i + 1]];
  }
  for (std::size_t i = 0; i < plan.victim_out.size(); i += 2) {
    const int32_t source = plan.victim_out[i], cell = plan.victim_out[i + 1];
    CHECK(!read.count(cell));
    cells[cell] = source >= 0 ? slots[source] : plan.reads[-1 - source];
  }
  for (const auto* list : {&plan.victim_in, &plan.fills}) {
    for (std::size_t i = 0; i < list->size(); i += 3) {
      if ((*list)[i + 2] >= 0) slots[(*list)[i + 2]] = out[(*list)[i]];
    }
  }
  for (std::size_t i = 0; i < plan.copies.size(); i += 2) {
    out[plan.copies[i]] = out[plan.copies[i + 1]];
  }
  CHECK(std::equal(out.begin(), out.end(), ids.begin(), ids.end()));
}

void plans_serve_every_row(const char* policy, std::mt19937_64& random) {
  std::vector<uint16_t> importance(kRows);
  for (uint16_t& value : importance) value = static_cast<uint16_t>(random() % 8 * 9000);
  const auto capacity = static_cast<int64_t>(random() % (kRows + 2));
  const auto cells = static_cast<int64_t>(random() % 20);
  const bool ranked = random() % 2, prefill = random() % 2;
  const auto planner = make_cache_planner({kRows, capacity, parse_cache_policy(policy),
                                           static_cast<int64_t>(random() % 9),
                                           ranked ? importance.data() : nullptr, cells, prefill});
  Slots slots(capacity, -1), buffer(cells, -1);
  const std::vector<int64_t> prefilled = planner->prefilled();
  std::copy(prefilled.begin(), prefilled.end(), slots.begin());
  std::vector<std::vector<int32_t>> batches;
  std::vector<CachePlan> plans;
  for (int step = 0; step < 300; ++step) {
    const auto kind = random() % 20;
    if (kind < 9) {
      std::vector<int32_t>& ids = batches.emplace_back(random() % 30);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % (random() % kRows + 1));
      CHECK(planner->announce(ids) == static_cast<int64_t>(batches.size()) - 1);
    } else if (kind < 14 && planner->planned() < planner->announced()) {
      plans.push_back(planner->plan());
    } else if (kind < 19 && !plans.empty()) {
      execute(plans.front(), batches[plans.front().batch], slots, buffer);
      planner->commit(plans.front().batch);
      plans.erase(plans.begin());
      std::vector<int64_t> ids(kRows);
      std::iota(ids.begin(), ids.end(), 0);
      const std::vector<int32_t> found = planner->committed_slots(ids);
      for (int32_t row = 0; row < kRows; ++row) CHECK(found[row] < 0 || slots[found[row]] == row);
    } else if (kind == 19) {
      const int64_t room = planner->announced() - planner->committed() + 1;
      const int64_t batch = planner->committed() + static_cast<int64_t>(random() % room);
      planner->retract(batch);
      batches.resize(batch);
      std::erase_if(plans, [&](const CachePlan& plan) { return plan.batch >= batch; });
    }
  }
  CHECK(planner->state_bytes() >= kRows * 8);
}

void wrong_calls_are_refused() {
  const auto planner = make_cache_planner({4, 2, CachePolicy::kHybrid, 1, nullptr, 0, true});
  const std::vector<int32_t> ids{1, 4, -1};
  CHECK(contains(message_of<std::out_of_range>([&] { planner->announce(ids); }),
                 "id 4 at position 1 is outside [0, 4)"));
  CHECK(planner->announced() == 0);
  message_of<std::invalid_argument>([&] { planner->plan(); });
  message_of<std::invalid_argument>([&] { planner->commit(0); });
  message_of<std::invalid_argument>([&] { planner->retract(1); });
  message_of<std::invalid_argument>([] { parse_cache_policy("fifo"); });
  message_of<std::invalid_argument>(
      [] { make_cache_planner({int64_t{1} << 31, 1, CachePolicy::kHybrid, 1, nullptr, 0, true}); });
}

}  // namespace

void test_cache_planner() {
  std::mt19937_64 random(11);
  for (const char* policy :
       {"hybrid", "lookahead", "hybrid-pvp", "static", "lru", "lfu", "sieve", "s3fifo"}) {
    for (int round = 0; round < 10; ++round) plans_serve_every_row(policy, random);
  }
  wrong_calls_are_refused();
}

}  // namespace gnnsys::test
