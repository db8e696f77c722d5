#pragma once

#include "../device.cuh"

// Exclusive prefix sums in three launches, so that no block waits for another: sum_tiles, scan_sums
// with one block, scan_tiles; each with kScanThreads threads a block.
//
//   counts: (n,) i64 or u8; offsets: (n + 1,) i64, the last of which is the sum of all.
//   sums: (tiles,) i64 of scratch, where tiles = ceil(n / kScanTile).
namespace gnnsys::cuda {

constexpr int kScanThreads = 256;
constexpr int kScanTile = kScanThreads * kFlight;

// Where in its tile a thread's k-th item lies: a warp's items follow one another.
__device__ __forceinline__ i64 scan_item(int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return static_cast<int>(threadIdx.x) / kWarp * (kWarp * kFlight) + k * kWarp + lane;
}

template <class Count>
__device__ __forceinline__ void load_tile(const Count* items, i64 n, i64 first,
                                          i64 (&values)[kFlight]) {
#pragma unroll
  for (int k = 0; k < kFlight; ++k) {
    const i64 i = first + scan_item(k);
    values[k] = i < n ? static_cast<i64>(items[i]) : 0;
  }
}

// Makes each of the tile's values the sum of those before it; returns the sum of all. For all
// threads of a block.
__device__ inline i64 scan_tile(i64 (&values)[kFlight]) {
  GNNSYS_SHARED(i64, warp_sums, kScanThreads / kWarp);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  i64 before = 0;
#pragma unroll
  for (int k = 0; k < kFlight; ++k) {
    i64 sum = values[k];
    for (int reach = 1; reach < kWarp; reach *= 2) {
      const i64 other = __shfl_up_sync(kAllLanes, sum, reach);
      if (lane >= reach) sum += other;
    }
    values[k] = before + sum - values[k];
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  if (lane == 0) warp_sums[warp] = before;
  __syncthreads();
  i64 earlier = 0, total = 0;
  for (int w = 0; w < kScanThreads / kWarp; ++w) {
    if (w < warp) earlier += warp_sums[w];
    total += warp_sums[w];
  }
  __syncthreads();  // the next tile's sums take their place
#pragma unroll
  for (int k = 0; k < kFlight; ++k) values[k] += earlier;
  return total;
}

// The sum of each tile. Reads sizeof(Count) bytes a count.
template <class Count>
__global__ void __launch_bounds__(kScanThreads)
    sum_tiles(const Count* __restrict__ counts, i64 n, i64* __restrict__ sums) {
  for (i64 tile = blockIdx.x; tile * kScanTile < n; tile += gridDim.x) {
    i64 values[kFlight];
    load_tile(counts, n, tile * kScanTile, values);
    const i64 total = scan_tile(values);
    if (threadIdx.x == 0) sums[tile] = total;
  }
}

// Makes each tile's sum that of all tiles before it, and writes the sum of all. One block. Reads
// and writes 8 bytes a tile.
__global__ void __launch_bounds__(kScanThreads) scan_sums(i64* sums, i64 tiles, i64* total) {
  i64 before = 0;
  for (i64 first = 0; first < tiles; first += kScanTile) {
    i64 values[kFlight];
    load_tile(sums, tiles, first, values);
    const i64 sum = scan_tile(values);
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = first + scan_item(k);
      if (i < tiles) sums[i] = before + values[k];
    }
    before += sum;
  }
  if (threadIdx.x == 0) *total = before;
}

// The sum of all counts before each. Reads sizeof(Count) bytes a count and writes 8.
template <class Count>
__global__ void __launch_bounds__(kScanThreads)
    scan_tiles(const Count* __restrict__ counts, i64 n, const i64* __restrict__ sums,
               i64* __restrict__ offsets) {
  for (i64 tile = blockIdx.x; tile * kScanTile < n; tile += gridDim.x) {
    i64 values[kFlight];
    load_tile(counts, n, tile * kScanTile, values);
    scan_tile(values);
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = tile * kScanTile + scan_item(k);
      if (i < n) offsets[i] = sums[tile] + values[k];
    }
  }
}

}  // namespace gnnsys::cuda
