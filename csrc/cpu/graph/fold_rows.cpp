#include "gnnsys/graph/fold_rows.hpp"

#include <algorithm>
#include <atomic>

#include "share_rows.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPrefetchBytes = 1024;  // the hardware's own prefetcher follows from there
constexpr int64_t kPrefetchEdges = 4;

template <class Value, class Id>
struct Job {
  const FoldedTargets<Id>& targets;
  const Value* rows;
  int64_t first, n, width;
  Value* out;
};

#define GNNSYS_KERNEL "graph/fold_rows_kernel.inl"
#include "each_isa.inl"

template <Fold How, class Value, class Id>
auto kernel_of([[maybe_unused]] Isa isa) {
  return GNNSYS_CHOOSE(isa, fold_targets<How, Value, Id>);
}

}  // namespace

template <class Value, class Id>
int64_t fold_rows(const FoldedTargets<Id>& targets, const Value* rows, int64_t first, int64_t n,
                  int64_t width, Fold how, Value* out, const ThreadPool& pool, Isa isa) {
  const Job<Value, Id> job{targets, rows, first, n, width, out};
  const auto kernel = how == Fold::sum   ? kernel_of<Fold::sum, Value, Id>(isa)
                      : how == Fold::max ? kernel_of<Fold::max, Value, Id>(isa)
                                         : kernel_of<Fold::min, Value, Id>(isa);
  std::atomic<int64_t> bad{-1};
  const int64_t edge_bytes = width * static_cast<int64_t>(sizeof(Value)) + kLine;
  share_rows(pool, targets.indptr, targets.count, edge_bytes, [&](int64_t begin, int64_t end) {
    const int64_t found = kernel(job, begin, end);
    if (found >= 0) bad.store(found, std::memory_order_relaxed);
  });
  return bad.load();
}

#define GNNSYS_INSTANTIATE(Value, Id)                                                             \
  template int64_t fold_rows<Value, Id>(const FoldedTargets<Id>&, const Value*, int64_t, int64_t, \
                                        int64_t, Fold, Value*, const ThreadPool&, Isa);
GNNSYS_INSTANTIATE(float, int32_t)
GNNSYS_INSTANTIATE(float, int64_t)
GNNSYS_INSTANTIATE(double, int32_t)
GNNSYS_INSTANTIATE(double, int64_t)
#undef GNNSYS_INSTANTIATE

}  // namespace gnnsys
