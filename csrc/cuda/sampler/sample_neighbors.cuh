#pragma once

#include "../device.cuh"
#include "philox.cuh"

// One hop of neighbour sampling over a CSC, uniform with or without replacement, in a batch that is
// neither disjoint nor temporal: bit for bit what csrc/cpu/sampler samples.
//
// count_edges, a prefix sum of the counts, then pick_by_lanes or pick_by_block where the fanout is
// above 0, then read_neighbors. Targets are the frontier: the batch's nodes that the hop before
// added, a seed that was given twice among them twice. The arrays between the launches:
//   first (n,) i64, degree (n,) u32: extent of each target in the CSC
//   count (n,) i64, offsets (n + 1,) i64: sampled edges of each target, and their prefix sum
//   position (offsets[n],) i64: sampled edges by position in the CSC, each target's ascending
namespace gnnsys::cuda {

constexpr i64 kMaxFanout = 2048;  // of pick_by_block; the CPU samples larger ones
constexpr i64 kMaxDegree = (i64{1} << 32) - 1;

// A fanout of -1 takes all.
struct Choice {
  i64 fanout;
  i64 replace;  // with replacement where not 0

  __device__ bool draws(u32 degree) const {
    return fanout > 0 && (replace != 0 ? degree > 0 : degree > fanout);
  }
  __device__ i64 edges(u32 degree) const {
    if (fanout < 0 || (replace == 0 && degree <= fanout)) return degree;
    return degree > 0 ? fanout : 0;
  }
};

// The extent of each target, and how many of its edges will be sampled: none where the target or
// the indptr is at fault.
//   indptr: (num_nodes + 1,) in host-mapped or device memory; targets: (n,).
// Reads 24 bytes a target, 16 of them at random, and writes 20.
__global__ void count_edges(const i64* __restrict__ indptr, i64 num_nodes, i64 num_edges,
                            const i64* __restrict__ targets, i64 n, Choice choice,
                            i64* __restrict__ first, u32* __restrict__ degree,
                            i64* __restrict__ count, u32* fault) {
  const i64 tile = static_cast<i64>(blockDim.x) * kFlight;
  for (i64 begin = blockIdx.x * tile + threadIdx.x; begin < n; begin += gridDim.x * tile) {
    i64 node[kFlight], from[kFlight], to[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      node[k] = i < n ? targets[i] : -1;
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const bool is_node = node[k] >= 0 && node[k] < num_nodes;
      from[k] = is_node ? indptr[node[k]] : 0;
      to[k] = is_node ? indptr[node[k] + 1] : 0;
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = begin + k * static_cast<i64>(blockDim.x);
      if (i >= n) continue;
      if (node[k] < 0 || node[k] >= num_nodes) report(fault, kIdOutOfRange, node[k]);
      if (from[k] < 0 || to[k] < from[k] || to[k] > num_edges || to[k] - from[k] > kMaxDegree) {
        report(fault, kBadIndptr, node[k]);
        to[k] = from[k];
      }
      first[i] = from[k];
      degree[i] = static_cast<u32>(to[k] - from[k]);
      count[i] = choice.edges(degree[i]);
    }
  }
}

// Floyd's method without replacement (Bentley and Floyd, "A sample of brilliance", CACM 1987), with
// all draws at once. Draw j of k lies in [0, d - k + j]. The method takes d - k + j instead where
// the draw was taken before: where an earlier draw is the same (it "meets" that one), or where the
// draw is d - k + i and draw i < j was itself replaced. So a draw is replaced if it, or any that it
// leads back to, meets another: this is draw i, or -1.
__device__ __forceinline__ int leads_to(u32 pick, u32 lowest, int j) {
  return pick >= lowest && pick - lowest < static_cast<u32>(j) ? static_cast<int>(pick - lowest)
                                                               : -1;
}

// Positions of the targets that draw at most kLanes edges: kLanes threads a target, one draw each.
//   kLanes: a power of two up to 32, at least the fanout. Blocks of a multiple of 32 threads.
// Reads 28 bytes a target and writes 8 an edge.
template <int kLanes>
__global__ void pick_by_lanes(const i64* __restrict__ targets, const i64* __restrict__ first,
                              const u32* __restrict__ degree, const i64* __restrict__ offsets,
                              i64 n, Choice choice, Stream stream, i64* __restrict__ position) {
  constexpr int kGroups = kWarp / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int j = lane % kLanes, group = lane / kLanes;
  const u32 k = static_cast<u32>(choice.fanout);
  const u64 key = stream.key();
  const i64 stride = thread_count() / kWarp * kGroups;
  for (i64 base = thread_number() / kWarp * kGroups; base < n; base += stride) {
    const i64 i = base + group;
    const u32 d = i < n ? degree[i] : 0;
    const bool draws = choice.draws(d) && j < static_cast<int>(k);
    if (__any_sync(kAllLanes, draws) == 0) continue;
    u32 pick = ~0u;  // behind all others, once sorted
    if (draws) {
      const u32 bound = choice.replace != 0 ? d : d - k + j + 1;
      pick = Draws{key, static_cast<u64>(targets[i])}.bounded(j, bound);
    }
    if (choice.replace == 0) {
      const u32 same = __match_any_sync(kAllLanes, static_cast<u64>(group) << 32 | pick);
      const bool meets = draws && (same & ((1u << lane) - 1)) != 0;
      const int back = draws ? leads_to(pick, d - k, j) : -1;
      u32 replaced = __ballot_sync(kAllLanes, meets);
      for (u32 before = 0; replaced != before;) {
        before = replaced;
        const bool follows = back >= 0 && (before >> (group * kLanes + back) & 1) != 0;
        replaced = __ballot_sync(kAllLanes, meets || follows);
      }
      if ((replaced >> lane & 1) != 0) pick = d - k + j;
    }
#pragma unroll
    for (int size = 2; size <= kLanes; size *= 2) {  // bitonic sort
#pragma unroll
      for (int reach = size / 2; reach > 0; reach /= 2) {
        const u32 other = __shfl_xor_sync(kAllLanes, pick, reach);
        const bool takes_less = ((j & reach) == 0) == ((j & size) == 0);
        if (takes_less == (other < pick)) pick = other;
      }
    }
    if (draws) position[offsets[i] + j] = first[i] + pick;
  }
}

// Sorts kCount words of shared memory, a power of two, by all threads of a block; ends with a
// barrier.
template <int kCount>
__device__ void sort_block(u64* words) {
  for (int size = 2; size <= kCount; size *= 2) {
    for (int reach = size / 2; reach > 0; reach /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < kCount / 2; pair += blockDim.x) {
        const int low = pair / reach * (2 * reach) + pair % reach, high = low + reach;
        const u64 a = words[low], b = words[high];
        if ((a > b) == ((low & size) == 0)) {
          words[low] = b;
          words[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Positions of the targets that draw at most kPicks edges: a block a target.
//   kPicks: a power of two up to kMaxFanout, at least the fanout; best with kPicks / 2 threads.
// Reads 28 bytes a target and writes 8 an edge.
template <int kPicks>
__global__ void pick_by_block(const i64* __restrict__ targets, const i64* __restrict__ first,
                              const u32* __restrict__ degree, const i64* __restrict__ offsets,
                              i64 n, Choice choice, Stream stream, i64* __restrict__ position) {
  static_assert(kPicks <= kMaxFanout);
  GNNSYS_SHARED(u64, sorted, kPicks);  // pick above number of the draw; ~0 is behind all others
  GNNSYS_SHARED(u32, drawn, kPicks);
  GNNSYS_SHARED(u8, meets, kPicks);
  const int threads = static_cast<int>(blockDim.x), self = static_cast<int>(threadIdx.x);
  const int k = static_cast<int>(choice.fanout);
  const u64 key = stream.key();
  for (i64 i = blockIdx.x; i < n; i += gridDim.x) {
    const u32 d = degree[i];
    if (!choice.draws(d)) continue;
    const u32 lowest = d - static_cast<u32>(k);
    const Draws draws{key, static_cast<u64>(targets[i])};
    for (int j = self; j < kPicks; j += threads) {
      sorted[j] = ~0ull;
      if (j >= k) continue;
      drawn[j] = draws.bounded(j, choice.replace != 0 ? d : lowest + j + 1);
      sorted[j] = static_cast<u64>(drawn[j]) << 32 | j;
    }
    sort_block<kPicks>(sorted);
    if (choice.replace == 0) {
      bool found = false;
      for (int p = self; p < k; p += threads) {
        const bool same = p > 0 && sorted[p] >> 32 == sorted[p - 1] >> 32;
        meets[static_cast<u32>(sorted[p])] = same;
        found |= same;
      }
      if (__syncthreads_or(found) != 0) {
        for (int j = self; j < k; j += threads) {
          int root = j;
          while (root >= 0 && meets[root] == 0) root = leads_to(drawn[root], lowest, root);
          sorted[j] = static_cast<u64>(root >= 0 ? lowest + j : drawn[j]) << 32 | j;
        }
        sort_block<kPicks>(sorted);
      }
    }
    // A thread reads only what it overwrites itself for the next target.
    for (int p = self; p < k; p += threads) {
      position[offsets[i] + p] = first[i] + static_cast<i64>(sorted[p] >> 32);
    }
  }
}

// The last of n targets whose edges begin at or before `edge`, and not before that of `low`.
__device__ __forceinline__ i64 target_of(const i64* offsets, i64 n, i64 edge, i64 low) {
  for (i64 high = n; high - low > 1;) {
    const i64 middle = low + (high - low) / 2;
    (offsets[middle] <= edge ? low : high) = middle;
  }
  return low;
}

// Source and target of every sampled edge; and the position, where the target takes all its edges.
//   indices: (num_edges,) in host-mapped or device memory, nodes of a graph of num_nodes.
//   source: (offsets[n],), 0 in place of a node that is none; col: (offsets[n],) places of the
//   targets in the batch, the first of which is first_place.
// Reads 8 bytes and sizeof(Index), the latter at random, and writes 16 + sizeof(Index) an edge; the
// search for its target stays in caches.
template <class Index>
__global__ void read_neighbors(const Index* __restrict__ indices, i64 num_nodes,
                               const i64* __restrict__ first, const u32* __restrict__ degree,
                               const i64* __restrict__ offsets, i64 n, Choice choice,
                               i64 first_place, i64* __restrict__ position,
                               Index* __restrict__ source, i64* __restrict__ col, u32* fault) {
  const i64 edges = offsets[n], tile = static_cast<i64>(blockDim.x) * kFlight;
  for (i64 begin = blockIdx.x * tile + threadIdx.x; begin < edges; begin += gridDim.x * tile) {
    i64 at[kFlight];
    Index node[kFlight];
    i64 target = 0;
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 e = begin + k * static_cast<i64>(blockDim.x);
      at[k] = -1;
      if (e >= edges) continue;
      target = target_of(offsets, n, e, target);
      const bool drew = choice.draws(degree[target]);
      at[k] = drew ? position[e] : first[target] + (e - offsets[target]);
      if (!drew) position[e] = at[k];
      col[e] = first_place + target;
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) node[k] = at[k] >= 0 ? indices[at[k]] : Index{0};
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 e = begin + k * static_cast<i64>(blockDim.x);
      if (e >= edges) continue;
      if (node[k] < 0 || static_cast<i64>(node[k]) >= num_nodes) {
        report(fault, kBadSource, static_cast<i64>(node[k]));
        node[k] = 0;
      }
      source[e] = node[k];
    }
  }
}

}  // namespace gnnsys::cuda
