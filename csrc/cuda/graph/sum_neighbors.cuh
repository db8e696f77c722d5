#pragma once

#include "edges.cuh"

// Sums over the edges of each target: the arithmetic of message passing.
//
//   out (T, H, C) = for each target the sum of weight[e] * scale[source[e]] * x[source[e]]
//
// over its edges, in their order: bit for bit what csrc/cpu/graph/aggregate.cpp computes, numbers
// that are none apart. An edge whose source is no row gives a fault, and out is of no use then.
//
// By x, the derivative is the same sum over the edges grouped by source. Without `source` it is the
// sum of segments of rows that lie sorted by segment; of rows that do not, with `source` the
// permutation that sorts their segments and keeps the order within each.
//
// A value of a target is summed by one thread, one edge after another, which a target of many edges
// would keep waiting for memory: those are left to sum_hubs.
namespace gnnsys::cuda {

// What one thread reads of kAhead edges: kVector values of each row, beginning at a column.
template <class Value, int kVector>
struct Ahead {
  bool is_there[kAhead];
  Vector<Value, kVector> x[kAhead];
  Wide<Value> factor[kAhead];

  // Of the edges first, first + step … before `end`, and a column of a head. All loads of a kind
  // begin before one is waited for.
  template <class Id>
  __device__ __forceinline__ void load_edges(const Edges<Id>& edges, const Rows<Value>& rows,
                                             i64 column, i64 head, i64 first, i64 step, i64 end,
                                             u32* fault) {
    i64 source[kAhead], bad = -1;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const i64 edge = first + k * step;
      source[k] = edge < end ? edges.source_of(edge) : -1;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const i64 edge = first + k * step;
      is_there[k] = rows.has(source[k]);
      if (is_there[k]) x[k] = load<kVector>(rows.x + source[k] * rows.width() + column);
      if (edge < end && !is_there[k]) bad = edge;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      factor[k] = 1;
      if (rows.scale != nullptr && is_there[k]) factor[k] = widen(rows.scale[source[k]]);
    }
    if (rows.weight != nullptr) {
      i64 place[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (is_there[k]) place[k] = edges.place_of(first + k * step);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (!is_there[k]) continue;
        factor[k] = multiply(factor[k], widen(rows.weight[place[k] * rows.heads + head]));
      }
    }
    if (bad >= 0) report(fault, kSourceOutOfRange, bad);
  }

  __device__ __forceinline__ Wide<Value> product(int k, int i) const {
    return multiply(factor[k], widen(x[k].values[i]));
  }
};

template <class Value>
__device__ __forceinline__ Value end_sum(Wide<Value> sum, bool mean, i64 edges) {
  if (mean && edges > 0) sum = divide(sum, static_cast<Wide<Value>>(edges));
  return Cast<Value, Wide<Value>>::of(sum);
}

// Targets of at most `hub_degree` edges: a thread for kVector values of a target, which lie within
// a head where there are weights.
//
//   Bytes of an edge: a row read, its id, and 1 value of each of weight (by head) and scale; of a
//   target: 16 read, a row written.
template <class Value, class Id, int kVector>
__global__ void sum_neighbors(Edges<Id> edges, Rows<Value> rows, i64 hub_degree,
                              Value* __restrict__ out, u32* fault) {
  const i64 words = rows.width() / kVector;
  for (i64 i = thread_number(); i < edges.targets * words; i += thread_count()) {
    const i64 target = i / words, column = i % words * kVector, head = column / rows.channels;
    const i64 from = edges.indptr[target], to = edges.indptr[target + 1];
    if (to - from > hub_degree) continue;
    Wide<Value> sum[kVector] = {};
    for (i64 edge = from; edge < to; edge += kAhead) {
      Ahead<Value, kVector> ahead;
      ahead.load_edges(edges, rows, column, head, edge, 1, to, fault);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (!ahead.is_there[k]) continue;
#pragma unroll
        for (int v = 0; v < kVector; ++v) sum[v] = add(sum[v], ahead.product(k, v));
      }
    }
    Vector<Value, kVector> result;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      result.values[v] = end_sum<Value>(sum[v], rows.mean, to - from);
    }
    reinterpret_cast<Vector<Value, kVector>*>(out)[i] = result;
  }
}

// hubs: the targets of more than `hub_degree` edges, in any order; no more than E / (hub_degree +
// 1). count: how many; 0 before.
//
//   Bytes of a target: 16 read.
template <class Id>
__global__ void find_hubs(Edges<Id> edges, i64 hub_degree, i64* __restrict__ hubs, u32* count) {
  for (i64 t = thread_number(); t < edges.targets; t += thread_count()) {
    if (edges.degree(t) > hub_degree) hubs[atomicAdd(count, 1u)] = t;
  }
}

constexpr int kSlice = 16;  // columns of a hub that a block sums

// The targets of find_hubs, of rows with a column at least: a block of kThreads threads for a slice
// of columns of each. All of them read rows and leave products in shared memory, where one thread a
// column adds them in order while the next are on their way: what is left in sequence is additions.
//
//   Bytes: as sum_neighbors, ids and factors once for each slice.
template <class Value, class Id, int kVector, int kThreads>
__global__ void sum_hubs(Edges<Id> edges, Rows<Value> rows, const i64* __restrict__ hubs,
                         const u32* __restrict__ count, Value* __restrict__ out, u32* fault) {
  using Products = Vector<Wide<Value>, kVector>;
  GNNSYS_SHARED(Products, products, kThreads * kAhead);
  const i64 width = rows.width();
  const int columns = width < kSlice ? static_cast<int>(width) : kSlice;  // of a slice
  const int words = columns / kVector, step = kThreads / words;
  const int thread = static_cast<int>(threadIdx.x);
  const int place = thread / words;
  const i64 stage = static_cast<i64>(step) * kAhead;  // edges whose products are there at a time
  const i64 slices = (width + columns - 1) / columns;
  for (i64 i = blockIdx.x; i < *count * slices; i += gridDim.x) {
    const i64 target = hubs[i / slices], first = i % slices * columns;
    const i64 from = edges.indptr[target], to = edges.indptr[target + 1];
    const i64 column = first + thread % words * kVector, head = column / rows.channels;
    const i64 end = place < step && column < width ? to : from;  // of what this thread reads
    Wide<Value> sum = 0;
    Ahead<Value, kVector> ahead;
    ahead.load_edges(edges, rows, column, head, from + place, step, end, fault);
    for (i64 edge = from; edge < to; edge += stage) {
      __syncthreads();  // all products before are added
      if (place < step) {
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          Products product = {};
          if (ahead.is_there[k]) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) product.values[v] = ahead.product(k, v);
          }
          products[k * step * words + thread] = product;
        }
      }
      __syncthreads();
      ahead.load_edges(edges, rows, column, head, edge + stage + place, step, end, fault);
      if (thread < columns) {
        const int n = static_cast<int>(to - edge < stage ? to - edge : stage);
        const auto* own = reinterpret_cast<const Wide<Value>*>(products) + thread;
#pragma unroll 8
        for (int k = 0; k < n; ++k) sum = add(sum, own[k * columns]);
      }
    }
    if (thread < columns && first + thread < width) {
      out[target * width + first + thread] = end_sum<Value>(sum, rows.mean, to - from);
    }
  }
}

}  // namespace gnnsys::cuda
