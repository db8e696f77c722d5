#pragma once

#include "edges.cuh"

// Dot products of the two rows of each edge: the derivative of sums over neighbours by the weights,
// and what sums over pairs are made of.
//
// Value i of a row is added to partial sum i % 8, in order; then partial sum k to k + 4, to k + 2,
// to k + 1: the order of csrc/cpu/rows/row_kernel.inl, so that the results are the same bit for
// bit, numbers that are none apart. An edge whose source is no row gives a fault.
namespace gnnsys::cuda {

constexpr int kPartial = 8;

// A dot product of `channels` values by kPartial / kVector threads side by side, all of which get
// it; `part` is which of them this one is. All lanes of the warp take part; rows may be null.
template <int kVector, class Value>
__device__ __forceinline__ Wide<Value> dot(const Value* x, const Value* y, i64 channels, int part) {
  Wide<Value> sums[kVector] = {};
  for (i64 first = part * kVector; first < channels && x != nullptr; first += kAhead * kPartial) {
    Vector<Value, kVector> left[kAhead], right[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const i64 at = first + k * kPartial;
      if (at < channels) {
        left[k] = load<kVector>(x + at);
        right[k] = load<kVector>(y + at);
      }
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k * kPartial >= channels) continue;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const auto product = multiply(widen(left[k].values[v]), widen(right[k].values[v]));
        sums[v] = add(sums[v], product);
      }
    }
  }
#pragma unroll
  for (int half = kPartial / 2; half >= kVector; half /= 2) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      sums[v] = add(sums[v], __shfl_xor_sync(kAllLanes, sums[v], half / kVector));
    }
  }
#pragma unroll
  for (int half = kVector / 2; half > 0; half /= 2) {
#pragma unroll
    for (int v = 0; v < half; ++v) sums[v] = add(sums[v], sums[v + half]);
  }
  return sums[0];
}

// An edge, and the head of it that a dot product is of.
struct EdgeHead {
  i64 edge, target, source;
  int head;
};

// Dot products of x[source] and y[target] by head of each edge, given to put(edges, rows, at, dot);
// where put.skips(edge), no row is read and put.skip(edge) is called. A warp for 32 edges at a
// time, of whichever targets, so that hubs are no different. y: (T, H, C). kVector divides C.
// Blocks of a multiple of 32 threads.
//
//   Bytes of an edge: a row of x and its id read, what `put` reads and writes; of a target: a row
//   of y, and 8 more.
template <class Value, class Id, int kVector, class Put>
__global__ void dot_edges(Edges<Id> edges, Rows<Value> rows, const Value* __restrict__ y, Put put,
                          u32* fault) {
  constexpr int kThreads = kPartial / kVector;  // of a dot product
  constexpr int kAtATime = kWarp / kThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, part = lane % kThreads;
  const int heads = static_cast<int>(rows.heads);
  const i64 last = edges.indptr[edges.targets];
  const i64 step = thread_count() / kWarp * kWarp;
  for (i64 tile = edges.indptr[0] + thread_number() - lane; tile < last; tile += step) {
    const i64 own_target = tile + lane < last ? edges.target_of(tile + lane) : 0;
    for (int i = lane / kThreads; i < kWarp * heads; i += kAtATime) {
      const int of = i / heads;
      EdgeHead at{tile + of, __shfl_sync(kAllLanes, own_target, of), -1, i % heads};
      const bool is_there = at.edge < last, skips = is_there && put.skips(at.edge);
      if (is_there && !skips) at.source = edges.source_of(at.edge);
      const Value *x = nullptr, *other = nullptr;
      if (rows.has(at.source)) {
        x = rows.x + at.source * rows.width() + at.head * rows.channels;
        other = y + at.target * rows.width() + at.head * rows.channels;
      }
      const Wide<Value> product = dot<kVector>(x, other, rows.channels, part);
      if (!is_there || part != 0) continue;
      if (skips) {
        put.skip(at.edge);
      } else if (x == nullptr) {
        report(fault, kSourceOutOfRange, at.edge);
      } else {
        put(edges, rows, at, product);
      }
    }
  }
}

// For dot_edges: out (E, H) = the dot products times the coefficients of sum_neighbors without
// their weights, which is the derivative of those sums by the weights. out lies as the weights do.
//
//   Bytes of an edge: a value of scale and 1 id of order read, and 16 for means; H values written.
template <class Value>
struct WeightDerivative {
  Value* out;

  __device__ static bool skips(i64) { return false; }
  __device__ static void skip(i64) {}

  template <class Id>
  __device__ void operator()(const Edges<Id>& edges, const Rows<Value>& rows, const EdgeHead& at,
                             Wide<Value> dot) const {
    Wide<Value> factor = rows.scale == nullptr ? Wide<Value>(1) : widen(rows.scale[at.source]);
    if (rows.mean) factor = divide(factor, static_cast<Wide<Value>>(edges.degree(at.target)));
    out[edges.place_of(at.edge) * rows.heads + at.head] =
        Cast<Value, Wide<Value>>::of(multiply(factor, dot));
  }
};

}  // namespace gnnsys::cuda
