#include "gnnsys/graph/pair_sums.hpp"

#include <algorithm>
#include <cmath>

#include "share_rows.hpp"
#include "wide_values.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPrefetchBytes = 1024;  // the hardware's own prefetcher follows from there
constexpr int64_t kPrefetchPairs = 8;

template <class Value, class Id>
struct Job {
  const Pairs<Value, Id>& pairs;
  const Value* u;
  int64_t width;
  Value tau;
  const Value* grad;
  Value* out;
};

#define GNNSYS_KERNEL "graph/pair_sums_kernel.inl"
#include "each_isa.inl"

template <class Value, class Id, class Kernel>
void run(const Job<Value, Id>& job, Kernel kernel, const ThreadPool& pool) {
  const int64_t edge_bytes = job.width * static_cast<int64_t>(sizeof(Value)) + kLine;
  share_rows(pool, job.pairs.indptr, job.pairs.num_rows, edge_bytes,
             [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

}  // namespace

template <class Value, class Id>
void pair_sums(const Pairs<Value, Id>& pairs, const Value* u, int64_t width, Value tau, Value* out,
               const ThreadPool& pool, Isa isa) {
  const Job<Value, Id> job{pairs, u, width, tau, nullptr, out};
  (void)isa;
  run(job, GNNSYS_CHOOSE(isa, sum_pairs<Value, Id>), pool);
}

template <class Value, class Id>
void pair_sums_backward(const Pairs<Value, Id>& pairs, const Value* u, int64_t width, Value tau,
                        const Value* grad, Value* out, const ThreadPool& pool, Isa isa) {
  const Job<Value, Id> job{pairs, u, width, tau, grad, out};
  (void)isa;
  run(job, GNNSYS_CHOOSE(isa, derive_pairs<Value, Id>), pool);
}

#define GNNSYS_INSTANTIATE(Value, Id)                                                         \
  template void pair_sums<Value, Id>(const Pairs<Value, Id>&, const Value*, int64_t, Value,   \
                                     Value*, const ThreadPool&, Isa);                         \
  template void pair_sums_backward<Value, Id>(const Pairs<Value, Id>&, const Value*, int64_t, \
                                              Value, const Value*, Value*, const ThreadPool&, \
                                              Isa);
GNNSYS_INSTANTIATE(float, int32_t)
GNNSYS_INSTANTIATE(float, int64_t)
GNNSYS_INSTANTIATE(double, int32_t)
GNNSYS_INSTANTIATE(double, int64_t)
#undef GNNSYS_INSTANTIATE

}  // namespace gnnsys
