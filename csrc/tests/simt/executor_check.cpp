// The executor itself: what CUDA promises, and that it sees what breaks a promise.
#include <string>
#include <vector>

#include "check.hpp"
#include "cuda.hpp"

namespace {

bool says(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// Sums over a block by shared memory, as tree.
void block_sum(const int* in, int* out) {
  SIMT_SHARED(int, sums, 256);
  const unsigned i = threadIdx.x;
  sums[i] = in[blockIdx.x * blockDim.x + i];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (i < half) sums[i] += sums[i + half];
  }
  if (i == 0) out[blockIdx.x] = sums[0];
}

void check_blocks(simt::Random& random) {
  std::vector<int> in(5 * 128), out(5), expected(5);
  for (std::size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<int>(simt::draw(random, -9, 9));
    expected[i / 128] += in[i];
  }
  simt::launch({5}, {128}, 0, [&] { block_sum(in.data(), out.data()); });
  EXPECT(out == expected, "sums of blocks");
}

void check_collectives(simt::Random& random) {
  const unsigned threads = static_cast<unsigned>(simt::draw(random, 1, 100));
  std::vector<unsigned> values(threads);
  for (auto& value : values) value = static_cast<unsigned>(simt::draw(random, 0, 5));
  std::vector<std::uint64_t> up(threads), pair(threads), group(threads), odd(threads), sum(threads);
  simt::launch({1}, {threads}, 0, [&] {
    const unsigned i = threadIdx.x, value = values[i];
    up[i] = __shfl_up_sync(~0u, std::uint64_t{value} << 40, 1);
    pair[i] = __shfl_xor_sync(~0u, value, 1, 8);
    group[i] = __match_any_sync(~0u, value);
    odd[i] = __ballot_sync(~0u, static_cast<int>(value % 2));
    // Lanes that meet apart from the others.
    const unsigned same = __ballot_sync(~0u, i % 3 == 0);
    if (i % 3 == 0) {
      sum[i] = __reduce_add_sync(same, value);
    } else {
      sum[i] = __reduce_max_sync(~same, value);
    }
  });
  for (unsigned i = 0; i < threads; ++i) {
    const unsigned first = i / 32 * 32, last = std::min(first + 32, threads);
    std::uint64_t bits = 0, same = 0, total = 0, most = 0;
    for (unsigned j = first; j < last; ++j) {
      bits |= std::uint64_t{values[j] % 2} << (j - first);
      same |= std::uint64_t{values[j] == values[i]} << (j - first);
      if (j % 3 == 0) total += values[j];
      if (j % 3 != 0) most = std::max<std::uint64_t>(most, values[j]);
    }
    EXPECT(up[i] == std::uint64_t{values[i == first ? i : i - 1]} << 40, "up %u", i);
    if ((i ^ 1) < last) EXPECT(pair[i] == values[i ^ 1], "xor %u", i);
    EXPECT(group[i] == same, "match %u", i);
    EXPECT(odd[i] == bits, "ballot %u", i);
    EXPECT(sum[i] == (i % 3 == 0 ? total : most), "reduce %u", i);
  }
}

void check_atomics(simt::Random& random) {
  const unsigned blocks = static_cast<unsigned>(simt::draw(random, 1, 6));
  unsigned count = 0;
  float sum = 0;
  std::uint64_t most = 0;
  unsigned turn = 0;
  simt::launch({blocks}, {70}, 0, [&] {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&count, 1u);
    atomicAdd(&sum, 0.5f);
    atomicMax(&most, i);
    if (blockIdx.x == 0 && threadIdx.x < 4) {  // each waits for the one before it
      while (atomicCAS(&turn, threadIdx.x, threadIdx.x + 1) != threadIdx.x) {
      }
    }
  });
  EXPECT(count == 70 * blocks && sum == 35.0f * static_cast<float>(blocks), "atomic sums");
  EXPECT(most == 70 * blocks - 1 && turn == 4, "atomic turns");
}

void check_faults() {
  using simt::error_of;
  EXPECT(says(error_of([] {
                simt::launch({1}, {64}, 0, [] {
                  if (threadIdx.x < 32) __syncwarp();
                  if (threadIdx.x == 40) __shfl_sync(1u << 9, 0, 0);
                  __syncthreads();
                });
              }),
              "does not name the lane"),
         "a mask without its caller");
  EXPECT(says(error_of([] {
                simt::launch({1}, {32}, 0, [] {
                  if (threadIdx.x == 0) {
                    __syncthreads();
                  } else {
                    __syncwarp(~0u);
                  }
                });
              }),
              "deadlock"),
         "a barrier and a collective wait for each other");
  EXPECT(says(error_of([] {
                simt::launch({1}, {32}, 0, [] {
                  if (threadIdx.x % 2 == 0) {
                    __ballot_sync(~0u, 1);
                  } else {
                    __shfl_sync(~0u, 1, 0);
                  }
                });
              }),
              "different collectives"),
         "two collectives meet");
  EXPECT(says(error_of([] { simt::launch({1}, {1025}, 0, [] {}); }), "1025 threads"), "a block");
  // Lanes that ended are not waited for.
  unsigned met = 0;
  simt::launch({1}, {64}, 0, [&] {
    if (threadIdx.x % 2 == 0) return;
    __syncwarp();
    __syncthreads();
    atomicAdd(&met, 1u);
  });
  EXPECT(met == 32, "threads that are left");
}

}  // namespace

void simt::check(Random& random, bool) {
  check_blocks(random);
  check_collectives(random);
  check_atomics(random);
  check_faults();
}
