#pragma once

// Runs the check that includes it on a GPU.
//
//   CHECK [SEEDS]     inputs of each kind (4)
#include <cstdio>
#include <cstdlib>

#include "simt/check.hpp"

int main(int argc, char** argv) {
  const std::uint64_t seeds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 4;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    simt::Random random(seed);
    simt::check(random, false);
  }
  std::puts("all inputs agree");
}
