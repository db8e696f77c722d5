// Runs the check that is linked in under every schedule.
//
//   CHECK [SEEDS]     random schedules of each kind (4)
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "check.hpp"

namespace {

#ifdef SIMT_TSAN
constexpr bool kTiny = true;
#else
constexpr bool kTiny = false;
#endif

const char* name_of(simt::Order order) {
  switch (order) {
    case simt::Order::kAscending:
      return "ascending";
    case simt::Order::kDescending:
      return "descending";
    default:
      return "random";
  }
}

void run(simt::Order order, std::uint64_t seed, unsigned resident) {
  simt::set_schedule({order, seed, resident});
  simt::Random random(seed);
  try {
    simt::check(random, kTiny);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s order, seed %llu, %u resident blocks: %s\n", name_of(order),
                 static_cast<unsigned long long>(seed), resident, error.what());
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t seeds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 4;
  for (const auto order : {simt::Order::kAscending, simt::Order::kDescending}) run(order, 0, 1);
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    for (unsigned resident : {1u, 3u}) run(simt::Order::kRandom, 2 * seed + resident, resident);
  }
  std::puts("all schedules agree");
}
