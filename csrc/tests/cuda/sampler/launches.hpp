#pragma once

#include <utility>
#include <vector>

#include "cuda/sampler/prefix_sum.cuh"
#include "cuda/sampler/sample_neighbors.cuh"
#include "simt/check.hpp"

// Launches of the sampler's kernels, with the specialisation that the arguments ask for.
namespace launches {

using namespace gnnsys::cuda;

// Some blocks, so that threads have several items to work on, or none.
inline simt::Dim3 some_blocks(simt::Random& random) {
  return {static_cast<unsigned>(simt::draw(random, 1, 3))};
}

template <class Count>
simt::Exact<i64> prefix_sum(simt::Random& random, const Count* counts, i64 n) {
  const i64 tiles = (n + kScanTile - 1) / kScanTile;
  simt::Exact<i64> sums(tiles), offsets(n + 1);
  const simt::Dim3 block{kScanThreads};
  simt::launch(some_blocks(random), block, sum_tiles<Count>, counts, n, sums.data());
  simt::launch({1}, block, scan_sums, sums.data(), tiles, offsets.data() + n);
  simt::launch(some_blocks(random), block, scan_tiles<Count>, counts, n, sums.data(),
               offsets.data());
  return offsets;
}

// Targets whose extents are known.
struct Hop {
  const i64* targets;
  const i64* first;
  const u32* degree;
  const i64* offsets;
  i64 n;
  Choice choice;
  Stream stream;
};

template <int kPicks>
void pick_at_most(simt::Random& random, const Hop& hop, i64* position) {
  const auto run = [&](unsigned threads, auto* kernel) {
    simt::launch(some_blocks(random), {threads}, kernel, hop.targets, hop.first, hop.degree,
                 hop.offsets, hop.n, hop.choice, hop.stream, position);
  };
  if constexpr (kPicks <= kWarp) {
    run(64, pick_by_lanes<kPicks>);
  } else {
    run(kPicks / static_cast<unsigned>(simt::draw(random, 1, 2) * 2), pick_by_block<kPicks>);
  }
}

inline void pick(simt::Random& random, const Hop& hop, i64* position) {
  [&]<int... kLog>(std::integer_sequence<int, kLog...>) {
    (void)((hop.choice.fanout <= 1 << kLog &&
            (pick_at_most<1 << kLog>(random, hop, position), true)) ||
           ...);
  }(std::make_integer_sequence<int, 12>());
}

}  // namespace launches
