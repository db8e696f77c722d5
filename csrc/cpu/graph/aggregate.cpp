#include "gnnsys/graph/aggregate.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "share_rows.hpp"
#include "wide_values.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kLine = 64;
// The hardware prefetcher follows a row by itself once its first lines are on their way.
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kPrefetchEdges = 8;
constexpr int64_t kBlock = 256;  // columns that are summed at a time, in the first-level cache

template <class Value, class Id>
struct Job {
  const Neighbors<Id>& edges;
  const Coefficients<Value>& factors;
  const Rows<Value>& x;
  const Value* y;
  Value* out;

  int64_t width() const { return x.heads * x.channels; }
};

#define GNNSYS_KERNEL "graph/aggregate_kernel.inl"
#include "each_isa.inl"

// Runs kernel(begin, end) over targets.
template <class Value, class Id, class Kernel>
int64_t run(const Job<Value, Id>& job, Kernel kernel, ThreadPool& pool) {
  std::atomic<int64_t> bad{-1};
  const int64_t row_bytes = job.width() * static_cast<int64_t>(sizeof(Value)) + kLine;
  share_rows(pool, job.edges.indptr, job.edges.num_targets, row_bytes,
             [&](int64_t begin, int64_t end) {
               const int64_t found = kernel(job, begin, end);
               if (found >= 0) bad.store(found, std::memory_order_relaxed);
             });
  return bad.load();
}

}  // namespace

template <class Value, class Id>
int64_t sum_neighbors(const Neighbors<Id>& edges, const Coefficients<Value>& coefficients,
                      const Rows<Value>& x, Value* out, ThreadPool& pool, Isa isa) {
  const Job<Value, Id> job{edges, coefficients, x, nullptr, out};
  (void)isa;
  return run(job, GNNSYS_CHOOSE(isa, sum_targets<Value, Id>), pool);
}

template <class Value, class Id>
int64_t dot_neighbors(const Neighbors<Id>& edges, const Coefficients<Value>& coefficients,
                      const Rows<Value>& x, const Value* y, Value* out, ThreadPool& pool, Isa isa) {
  const Job<Value, Id> job{edges, coefficients, x, y, out};
  (void)isa;
  return run(job, GNNSYS_CHOOSE(isa, dot_targets<Value, Id>), pool);
}

EdgeScan scan_edges(const int64_t* source, const int64_t* target, int64_t num_edges) {
  EdgeScan scan{true, 0, -1, 0, -1};
  if (num_edges == 0) return scan;
  scan.min_source = scan.max_source = source[0];
  scan.min_target = scan.max_target = target[0];
  for (int64_t e = 1; e < num_edges; ++e) {
    scan.min_source = std::min(scan.min_source, source[e]);
    scan.max_source = std::max(scan.max_source, source[e]);
    scan.min_target = std::min(scan.min_target, target[e]);
    scan.max_target = std::max(scan.max_target, target[e]);
    scan.sorted &= target[e - 1] <= target[e];
  }
  return scan;
}

void count_sorted(const int64_t* target, int64_t num_edges, int64_t num_targets, int64_t* indptr) {
  int64_t next = 0;  // the first target whose entry is not written yet
  for (int64_t e = 0; e < num_edges; ++e) {
    while (next <= target[e]) indptr[next++] = e;
  }
  while (next <= num_targets) indptr[next++] = num_edges;
}

template <class Id>
int64_t group_edges(const int64_t* key, const int64_t* value, int64_t num_edges, int64_t num_keys,
                    int64_t* indptr, Id* value_out, Id* order_out) {
  // Counted two places up, summed one place up: filling then moves each entry to its final value.
  std::fill(indptr, indptr + num_keys + 1, 0);
  for (int64_t e = 0; e < num_edges; ++e) {
    if (static_cast<uint64_t>(key[e]) >= static_cast<uint64_t>(num_keys)) return e;
    if (key[e] + 2 <= num_keys) ++indptr[key[e] + 2];
  }
  for (int64_t k = 2; k <= num_keys; ++k) indptr[k] += indptr[k - 1];
  for (int64_t e = 0; e < num_edges; ++e) {
    const int64_t at = indptr[key[e] + 1]++;
    value_out[at] = static_cast<Id>(value[e]);
    order_out[at] = static_cast<Id>(e);
  }
  return -1;
}

int64_t count_until_zeros(const void* rows, int64_t num_rows, int64_t row_bytes) {
  const char* const first = static_cast<const char*>(rows);
  int64_t left = num_rows * row_bytes;  // bytes that are not known to be zeros
  constexpr int64_t kWords = 8;
  uint64_t words[kWords];
  constexpr int64_t kStep = sizeof(words);
  for (uint64_t any = 0; left >= kStep; left -= kStep) {
    std::memcpy(words, first + left - kStep, kStep);
    for (uint64_t word : words) any |= word;
    if (any != 0) break;
  }
  while (left > 0 && first[left - 1] == 0) --left;
  return row_bytes > 0 ? (left + row_bytes - 1) / row_bytes : 0;
}

#define GNNSYS_INSTANTIATE(Value, Id)                                                              \
  template int64_t sum_neighbors<Value, Id>(const Neighbors<Id>&, const Coefficients<Value>&,      \
                                            const Rows<Value>&, Value*, ThreadPool&, Isa);         \
  template int64_t dot_neighbors<Value, Id>(const Neighbors<Id>&, const Coefficients<Value>&,      \
                                            const Rows<Value>&, const Value*, Value*, ThreadPool&, \
                                            Isa);
GNNSYS_INSTANTIATE(float, int32_t)
GNNSYS_INSTANTIATE(float, int64_t)
GNNSYS_INSTANTIATE(double, int32_t)
GNNSYS_INSTANTIATE(double, int64_t)
GNNSYS_INSTANTIATE(BFloat16, int32_t)
GNNSYS_INSTANTIATE(BFloat16, int64_t)
#undef GNNSYS_INSTANTIATE

template int64_t group_edges<int32_t>(const int64_t*, const int64_t*, int64_t, int64_t, int64_t*,
                                      int32_t*, int32_t*);
template int64_t group_edges<int64_t>(const int64_t*, const int64_t*, int64_t, int64_t, int64_t*,
                                      int64_t*, int64_t*);

}  // namespace gnnsys
