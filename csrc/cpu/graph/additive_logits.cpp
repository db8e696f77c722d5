#include "gnnsys/graph/additive_logits.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "element_types.hpp"
#include "share_rows.hpp"
#include "wide_values.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kPrefetchEdges = 8;
// Groups whose part of the derivative by att is summed at a time, whatever the threads.
constexpr int64_t kBlock = 256;

// Edges and rows with their element types. Id is int32_t or int64_t.
template <class Value, class Id>
struct Job {
  const int64_t* indptr;
  const Id* other;
  const Id* order;
  int64_t num_rows, heads, channels;
  const Value* x;
  const Value* y;
  const Value* edge;
  const Value* att;
  Wide<Value> slope;
  const Value* grad;
  Value* out;
  Value* of_edges;

  int64_t width() const { return heads * channels; }
  int64_t place(int64_t position) const {
    return order ? static_cast<int64_t>(order[position]) : position;
  }
};

#define GNNSYS_KERNEL "graph/additive_logits_kernel.inl"
#include "each_isa.inl"

template <class Value, class Id>
Job<Value, Id> job_of(const EdgeArrays& edges, const AdditiveRows& rows) {
  Job<Value, Id> job{};
  job.indptr = at<const int64_t>(edges.indptr);
  job.other = at<const Id>(edges.source);
  job.order = at<const Id>(edges.order);
  job.num_rows = rows.num_rows;
  job.heads = rows.heads;
  job.channels = rows.channels;
  job.x = at<const Value>(rows.x);
  job.y = at<const Value>(rows.y);
  job.edge = at<const Value>(rows.edge);
  job.att = at<const Value>(rows.att);
  job.slope = static_cast<Wide<Value>>(rows.slope);
  return job;
}

}  // namespace

int64_t additive_logits(const EdgeArrays& edges, const AdditiveRows& rows, uintptr_t out,
                        const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  return with_values_and_ids(
      rows.dtype, edges.id_bytes, "logits", [&]<class Value, class Id>(Value, Id) {
        Job<Value, Id> job = job_of<Value, Id>(edges, rows);
        job.out = at<Value>(out);
        const auto kernel = GNNSYS_CHOOSE(isa, logits_of_groups<Value, Id>);
        const int64_t row_bytes = job.width() * static_cast<int64_t>(sizeof(Value)) + kLine;
        return find_in_shares(threads, job.indptr, edges.num_targets, row_bytes,
                              [&](int64_t begin, int64_t end) { return kernel(job, begin, end); });
      });
}

int64_t additive_logits_backward(const EdgeArrays& edges, const AdditiveRows& rows, uintptr_t grad,
                                 uintptr_t out, uintptr_t of_edges, uintptr_t of_att,
                                 const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  return with_values_and_ids(
      rows.dtype, edges.id_bytes, "logits", [&]<class Value, class Id>(Value, Id) {
        Job<Value, Id> job = job_of<Value, Id>(edges, rows);
        job.grad = at<const Value>(grad);
        job.out = at<Value>(out);
        job.of_edges = at<Value>(of_edges);
        const auto kernel = GNNSYS_CHOOSE(isa, derive_groups<Value, Id>);
        const int64_t blocks = (edges.num_targets + kBlock - 1) / kBlock, width = job.width();
        std::vector<double> parts(of_att ? blocks * width : 0);  // (blocks, H, C)
        std::atomic<int64_t> bad{-1};
        parallel_for(threads, blocks, 1, [&](int64_t begin, int64_t end) {
          for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block * kBlock,
                          last = std::min(first + kBlock, edges.num_targets);
            const int64_t found =
                kernel(job, first, last, of_att ? parts.data() + block * width : nullptr);
            if (found >= 0) bad.store(found, std::memory_order_relaxed);
          }
        });
        if (of_att) {
          std::vector<double> sum(width);
          for (int64_t i = 0; i < blocks * width; ++i) sum[i % width] += parts[i];
          for (int64_t i = 0; i < width; ++i) {
            narrow(static_cast<Wide<Value>>(sum[i]), at<Value>(of_att)[i]);
          }
        }
        return bad.load();
      });
}

}  // namespace gnnsys
