#pragma once

#include "edges.cuh"

// Softmax over the edges of each target, head by head: the coefficients of attention.
//
// A target's edges are shared by a team of threads: a part of a warp, or a block where there are
// many. Of the heads each thread has one in `Team::heads`, of the edges one in `Team::slots`. Sums
// of threads are added in an order of their own, so that results depend on the size of the team,
// but not on the launch.
//
// `exponential` apart, all is rounded as plain C++ would round it.
namespace gnnsys::cuda {

// Of each edge and head z = leaky_relu(logits[e] + source[s] + target[t]). Value is float, double
// or BFloat; S rows of source.
template <class Value>
struct Scores {
  using Sum = Wide<Value>;
  const Value* logits;  // (E, H), lie as weights do; null: 0
  const Value* source;  // (S, H); null: 0
  const Value* target;  // (T, H); null: 0
  i64 sources;
  i64 heads;
  Sum slope;  // of sums below 0; 1: as they are

  __device__ Sum leaky_relu(Sum sum) const { return sum > 0 ? sum : multiply(slope, sum); }

  // f(place, sum) of each edge and head that are this thread's: where the edge's values lie, and
  // what leaky_relu is taken of. Loads of kAhead edges begin before one is waited for.
  template <class Id, class Team, class F>
  __device__ __forceinline__ void each(const Edges<Id>& edges, const Team& team, u32* fault,
                                       const F& f) const {
    if (!team.is_there()) return;
    const i64 last = edges.indptr[team.of + 1];
    const Sum own = target == nullptr ? 0 : widen(target[team.of * heads + team.head]);
    for (i64 edge = edges.indptr[team.of] + team.slot; edge < last; edge += kAhead * team.slots) {
      i64 place[kAhead], from[kAhead];
      Sum sum[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const i64 at = edge + k * team.slots;
        place[k] = at < last ? edges.place_of(at) * heads + team.head : -1;
        from[k] = at < last && source != nullptr ? edges.source_of(at) : 0;
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        sum[k] = 0;
        if (place[k] >= 0 && logits != nullptr) sum[k] = widen(logits[place[k]]);
        if (place[k] < 0 || source == nullptr) continue;
        if (from[k] >= 0 && from[k] < sources) {
          sum[k] = add(sum[k], widen(source[from[k] * heads + team.head]));
        } else {
          report(fault, kSourceOutOfRange, edge + k * team.slots);
        }
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (place[k] >= 0) f(place[k], target == nullptr ? sum[k] : add(sum[k], own));
      }
    }
  }

  // All of them 0, without a load.
  __device__ Scores nothing() const { return {nullptr, nullptr, nullptr, 0, heads, 1}; }
};

// The threads of a target, and which of its edges and heads are this one's. More than a warp's:
// kThreads, with kThreads values of shared memory.
template <class Sum, int kThreads>
struct Team {
  i64 of;         // the target; -1: none
  int lanes;      // of a warp that have the same target
  int heads;      // at a time, divides `lanes`
  i64 all_heads;  // H
  Sum* shared;
  i64 head = 0;  // may be none
  int slot = 0, slots = 1;

  __device__ bool is_there() const { return of >= 0 && head < all_heads; }

  __device__ void take(i64 target, i64 first_head) {
    const int thread = static_cast<int>(threadIdx.x) % (kThreads > kWarp ? kThreads : lanes);
    of = target;
    head = first_head + thread % heads;
    slot = thread / heads;
    slots = (kThreads > kWarp ? kThreads : lanes) / heads;
  }

  // op over the values of all threads with this head, the same for each. All threads of the warp,
  // or block, take part.
  template <class Op>
  __device__ __forceinline__ Sum combine(Sum value, const Op& op) const {
    for (int step = heads; step < lanes; step *= 2) {
      value = op(value, __shfl_xor_sync(kAllLanes, value, step));
    }
    if constexpr (kThreads > kWarp) {
      const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
      __syncthreads();  // all have what was there before
      if (lane < heads) shared[thread / kWarp * heads + lane] = value;
      __syncthreads();
      value = shared[lane % heads];
      for (int warp = 1; warp < kThreads / kWarp; ++warp) {
        value = op(value, shared[warp * heads + lane % heads]);
      }
    }
    return value;
  }

  __device__ __forceinline__ Sum add_up(Sum value) const {
    return combine(value, [](Sum a, Sum b) { return add(a, b); });
  }
};

// For softmax_targets and softmax_hubs: out (E, H) = exp(z - m) / sum(exp(z - m)), m the greatest z
// of the target. out lies as weights do.
//
//   Bytes of an edge and head: 3 times 1 value of each of logits and source, 1 written; of an edge:
//   3 times its 2 ids; of a target: 16, and 3 H values of target.
template <class Value>
struct Softmax {
  Value* out;

  template <class Id, class Team>
  __device__ __forceinline__ void operator()(const Edges<Id>& edges, const Scores<Value>& scores,
                                             const Team& team, u32* fault) const {
    using Sum = Wide<Value>;
    const auto greater = [](Sum a, Sum b) { return a > b ? a : b; };
    Sum most = -static_cast<Sum>(__uint_as_float(0x7f800000u)), sum = 0;  // -infinity
    scores.each(edges, team, fault,
                [&](i64, Sum z) { most = greater(scores.leaky_relu(z), most); });
    most = team.combine(most, greater);
    const auto term = [&](Sum z) { return exponential(add(scores.leaky_relu(z), -most)); };
    scores.each(edges, team, fault, [&](i64, Sum z) { sum = add(sum, term(z)); });
    sum = team.add_up(sum);
    scores.each(edges, team, fault,
                [&](i64 place, Sum z) { out[place] = Cast<Value, Sum>::of(divide(term(z), sum)); });
  }
};

// The same: the derivatives of sum(grad * softmax) by logits (E, H), which lie as weights do, and
// by target (T, H), which are the sums of those over edges.
//
//   Bytes of an edge and head: twice 1 value of softmax and grad, 1 of each of logits and source, 1
//   written; of an edge: twice its 2 ids; of a target: 16, H values of target, H written.
template <class Value>
struct SoftmaxDerivative {
  const Value* softmax;  // (E, H)
  const Value* grad;     // (E, H)
  Value* by_logits;
  Value* by_target;  // null: not asked for

  template <class Id, class Team>
  __device__ __forceinline__ void operator()(const Edges<Id>& edges, const Scores<Value>& scores,
                                             const Team& team, u32* fault) const {
    using Sum = Wide<Value>;
    Sum mean = 0, sum = 0;
    scores.nothing().each(edges, team, fault, [&](i64 place, Sum) {
      mean = add(mean, multiply(widen(softmax[place]), widen(grad[place])));
    });
    mean = team.add_up(mean);
    scores.each(edges, team, fault, [&](i64 place, Sum z) {
      Sum by = multiply(widen(softmax[place]), add(widen(grad[place]), -mean));
      if (!(z > 0)) by = multiply(scores.slope, by);
      by_logits[place] = Cast<Value, Sum>::of(by);
      sum = add(sum, by);
    });
    if (by_target == nullptr) return;
    sum = team.add_up(sum);
    if (team.slot == 0 && team.is_there()) {
      by_target[team.of * scores.heads + team.head] = Cast<Value, Sum>::of(sum);
    }
  }
};

// Targets of at most `hub_degree` edges: `lanes` threads for each, a power of 2 up to 32, which
// have `heads` heads at a time, a power of 2 up to that. Blocks of a multiple of 32 threads.
template <class Value, class Id, class Work>
__global__ void softmax_targets(Edges<Id> edges, Scores<Value> scores, i64 lanes, i64 heads,
                                i64 hub_degree, Work work, u32* fault) {
  Team<Wide<Value>, kWarp> team{-1, static_cast<int>(lanes), static_cast<int>(heads), scores.heads,
                                nullptr};
  const i64 at_a_time = thread_count() / lanes, own = thread_number() / lanes;
  const i64 in_warp = own % (kWarp / lanes);
  for (i64 t = own; t - in_warp < edges.targets; t += at_a_time) {
    const bool is_small = t < edges.targets && edges.degree(t) <= hub_degree;
    for (i64 head = 0; head < scores.heads; head += heads) {
      team.take(is_small ? t : -1, head);
      work(edges, scores, team, fault);
    }
  }
}

// The targets of find_hubs (sum_neighbors.cuh): a block of kThreads threads, more than 32, for
// each.
template <class Value, class Id, int kThreads, class Work>
__global__ void softmax_hubs(Edges<Id> edges, Scores<Value> scores, i64 heads,
                             const i64* __restrict__ hubs, const u32* __restrict__ count, Work work,
                             u32* fault) {
  GNNSYS_SHARED(Wide<Value>, shared, kThreads);
  Team<Wide<Value>, kThreads> team{-1, kWarp, static_cast<int>(heads), scores.heads, shared};
  for (i64 i = blockIdx.x; i < *count; i += gridDim.x) {
    for (i64 head = 0; head < scores.heads; head += heads) {
      team.take(hubs[i], head);
      work(edges, scores, team, fault);
    }
  }
}

}  // namespace gnnsys::cuda
