// Tests of the C++ parts without Python, for sanitizers: scripts/sanitize builds and runs them.
#include <cstdio>

#include "tests.hpp"

int main() {
  gnnsys::test::test_attention();
  gnnsys::test::test_bit_masks();
  gnnsys::test::test_buffer_pool();
  gnnsys::test::test_cache_planner();
  gnnsys::test::test_draws();
  gnnsys::test::test_edges();
  gnnsys::test::test_gather();
  gnnsys::test::test_thread_pool();
  gnnsys::test::test_keyed_dropout();
  gnnsys::test::test_pair_sums();
  gnnsys::test::test_segment_matmul();
  gnnsys::test::test_file_reader();
  gnnsys::test::test_sampler();
  gnnsys::test::test_typed_pairs();
  std::puts("all checks hold");
}
