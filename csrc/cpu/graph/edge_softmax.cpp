#include "gnnsys/graph/edge_softmax.hpp"

#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

#include "element_types.hpp"
#include "share_rows.hpp"
#include "wide_values.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kPrefetchEdges = 16;

// Edges and their values with the element types. Id is int32_t or int64_t.
template <class Value, class Id>
struct Job {
  const int64_t* indptr;
  const Id* source_of;
  const Id* order;
  const Value* edge;
  const Value* source;
  const Value* target;
  int64_t num_sources, heads;
  bool leaky;
  Wide<Value> slope;
  const Value* alpha;
  const Value* grad;
  Value* out;
  Value* of_targets;

  // Where the values of an edge lie.
  int64_t place(int64_t position) const {
    return (order ? static_cast<int64_t>(order[position]) : position) * heads;
  }
};

// What exp takes apart: x = n ln 2 + r, whose exponential is 2^n times a polynomial of r.
template <class Float>
struct Exponential;

template <>
struct Exponential<float> {
  using Bits = uint32_t;
  static constexpr float kLeast = -87.0f;       // below, the result is 0
  static constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f;  // ln 2 in two parts
  static constexpr int kMantissa = 23, kDegree = 7;
  static constexpr Bits kOne = 0x3f800000;
};

template <>
struct Exponential<double> {
  using Bits = uint64_t;
  static constexpr double kLeast = -708.0;
  static constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kHigh = 6.93145751953125e-1, kLow = 1.42860682030941723212e-6;
  static constexpr int kMantissa = 52, kDegree = 13;
  static constexpr Bits kOne = 0x3ff0000000000000;
};

// 1 / k!
template <class Float, int kDegree>
struct Taylor {
  Float of[kDegree + 1];
  constexpr Taylor() : of{} {
    double factorial = 1;
    for (int k = 0; k <= kDegree; ++k) {
      if (k > 1) factorial *= k;
      of[k] = static_cast<Float>(1 / factorial);
    }
  }
};

// A value for each head; kHeads is their number, or 0 where the compiler does not know it.
template <class Float, int64_t kHeads>
struct Row {
  Float of[kHeads];
  explicit Row(int64_t) {}
  Float* data() { return of; }
  Float& operator[](int64_t head) { return of[head]; }
};

template <class Float>
struct Row<Float, 0> : std::vector<Float> {
  explicit Row(int64_t heads) : std::vector<Float>(heads) {}
};

#define GNNSYS_KERNEL "graph/edge_softmax_kernel.inl"
#include "each_isa.inl"

template <class Value, class Id>
Job<Value, Id> job_of(const EdgeArrays& edges, const EdgeLogits& logits) {
  Job<Value, Id> job{};
  job.indptr = at<const int64_t>(edges.indptr);
  job.source_of = at<const Id>(edges.source);
  job.order = at<const Id>(edges.order);
  job.edge = at<const Value>(logits.edge);
  job.source = at<const Value>(logits.source);
  job.target = at<const Value>(logits.target);
  job.num_sources = logits.num_sources;
  job.heads = logits.heads;
  job.leaky = logits.leaky;
  job.slope = static_cast<Wide<Value>>(logits.slope);
  return job;
}

// Runs a kernel on all targets; what it returns where that is not -1.
template <class Value, class Id, class Kernel>
int64_t run(const Job<Value, Id>& job, const EdgeArrays& edges, const Kernel& kernel,
            const ThreadPool& threads) {
  const int64_t edge_bytes = 8 * job.heads * static_cast<int64_t>(sizeof(Wide<Value>));
  return find_in_shares(threads, job.indptr, edges.num_targets, edge_bytes,
                        [&](int64_t begin, int64_t end) { return kernel(job, begin, end); });
}

}  // namespace

int64_t edge_softmax(const EdgeArrays& edges, const EdgeLogits& logits, uintptr_t out,
                     const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  return with_values_and_ids(
      logits.dtype, edges.id_bytes, "softmax", [&]<class Value, class Id>(Value, Id) {
        Job<Value, Id> job = job_of<Value, Id>(edges, logits);
        job.out = at<Value>(out);
        return run(job, edges, GNNSYS_CHOOSE(isa, softmax_targets<Value, Id>), threads);
      });
}

int64_t edge_softmax_backward(const EdgeArrays& edges, const EdgeLogits& logits, uintptr_t alpha,
                              uintptr_t grad, uintptr_t out, uintptr_t of_targets,
                              const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  return with_values_and_ids(
      logits.dtype, edges.id_bytes, "softmax", [&]<class Value, class Id>(Value, Id) {
        Job<Value, Id> job = job_of<Value, Id>(edges, logits);
        job.alpha = at<const Value>(alpha);
        job.grad = at<const Value>(grad);
        job.out = at<Value>(out);
        job.of_targets = at<Value>(of_targets);
        return run(job, edges, GNNSYS_CHOOSE(isa, derive_targets<Value, Id>), threads);
      });
}

void sum_edges(const EdgeArrays& edges, const std::string& dtype, int64_t heads, uintptr_t values,
               uintptr_t out, const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  with_values_and_ids(dtype, edges.id_bytes, "softmax", [&]<class Value, class Id>(Value, Id) {
    Job<Value, Id> job = job_of<Value, Id>(edges, {dtype, heads, values, 0, 0, 0, false, 0});
    job.out = at<Value>(out);
    return run(job, edges, GNNSYS_CHOOSE(isa, sum_of_targets<Value, Id>), threads);
  });
}

}  // namespace gnnsys
