#include "gnnsys/graph/aggregate.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include "element_types.hpp"
#include "share_rows.hpp"
#include "wide_values.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kLine = 64;
// The hardware prefetcher follows a row by itself once its first lines are on their way.
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kPrefetchEdges = 8;
constexpr int64_t kBlock = 256;  // columns that are summed at a time, in the first-level cache

// Edges and rows with their element types. Id is int32_t or int64_t.
template <class Value, class Id>
struct Job {
  const int64_t* indptr;
  const Id* source;
  const Id* order;
  const Value* x;
  const Value* weight;
  const Value* scale;
  bool mean;
  int64_t num_rows, heads, channels;
  const Value* y;
  Value* out;

  int64_t width() const { return heads * channels; }
};

#define GNNSYS_KERNEL "graph/aggregate_kernel.inl"
#include "each_isa.inl"

template <class Value, class Id>
int64_t run(const EdgeArrays& edges, const RowArrays& rows, bool dots, uintptr_t y, uintptr_t out,
            const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  const Job<Value, Id> job{at<const int64_t>(edges.indptr),
                           at<const Id>(edges.source),
                           at<const Id>(edges.order),
                           at<const Value>(rows.x),
                           at<const Value>(rows.weight),
                           at<const Value>(rows.scale),
                           rows.mean,
                           rows.num_rows,
                           rows.heads,
                           rows.channels,
                           at<const Value>(y),
                           at<Value>(out)};
  const auto kernel = dots ? GNNSYS_CHOOSE(isa, dot_targets<Value, Id>)
                           : GNNSYS_CHOOSE(isa, sum_targets<Value, Id>);
  const int64_t row_bytes = job.width() * static_cast<int64_t>(sizeof(Value)) + kLine;
  return find_in_shares(threads, job.indptr, edges.num_targets, row_bytes,
                        [&](int64_t begin, int64_t end) { return kernel(job, begin, end); });
}

// run() with the element types that the arrays have; others are its arguments.
template <class... Others>
int64_t dispatch(const EdgeArrays& edges, const RowArrays& rows, const Others&... others) {
  return with_values_and_ids(
      rows.dtype, edges.id_bytes, "aggregation",
      [&]<class Value, class Id>(Value, Id) { return run<Value, Id>(edges, rows, others...); });
}

}  // namespace

int64_t sum_neighbors(const EdgeArrays& edges, const RowArrays& rows, uintptr_t out,
                      const ThreadPool& threads, Isa isa) {
  return dispatch(edges, rows, false, uintptr_t{0}, out, threads, isa);
}

int64_t dot_neighbors(const EdgeArrays& edges, const RowArrays& rows, uintptr_t y, uintptr_t out,
                      const ThreadPool& threads, Isa isa) {
  return dispatch(edges, rows, true, y, out, threads, isa);
}

int64_t find_nonzero_rows(uintptr_t rows, int64_t row_bytes, std::span<int64_t> found) {
  const char* row = at<const char>(rows);
  constexpr int64_t kWords = 8;
  uint64_t words[kWords];
  constexpr int64_t kStep = sizeof(words);
  const auto is_nonzero = [&] {
    int64_t done = 0;
    for (uint64_t any = 0; row_bytes - done >= kStep; done += kStep) {
      std::memcpy(words, row + done, kStep);
      for (uint64_t word : words) any |= word;
      if (any != 0) return true;
    }
    return std::any_of(row + done, row + row_bytes, [](char byte) { return byte != 0; });
  };
  int64_t count = 0;
  for (int64_t number = 0; number < std::ssize(found); ++number, row += row_bytes) {
    if (is_nonzero()) found[count++] = number;
  }
  return count;
}

}  // namespace gnnsys
