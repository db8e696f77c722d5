#pragma once

namespace gnnsys::test {

// Each ends the program at the first check that does not hold.
void test_attention();
void test_bit_masks();
void test_buffer_pool();
void test_cache_planner();
void test_draws();
void test_edges();
void test_file_reader();
void test_gather();
void test_keyed_dropout();
void test_pair_sums();
void test_sampler();
void test_segment_matmul();
void test_thread_pool();
void test_typed_pairs();

}  // namespace gnnsys::test
