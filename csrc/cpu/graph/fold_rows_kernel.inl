// The loops over edges, compiled once for each instruction set: fold_rows.cpp includes this with
// GNNSYS_NAMESPACE and GNNSYS_TARGET set.

namespace GNNSYS_NAMESPACE {

// A NaN stays, as in torch.
template <Fold How, class Value>
GNNSYS_TARGET inline void fold_row(Value* __restrict out, const Value* __restrict row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (How == Fold::sum) {
      out[i] += row[i];
    } else {
      const bool better = How == Fold::max ? row[i] > out[i] : row[i] < out[i];
      out[i] = better || row[i] != row[i] ? row[i] : out[i];
    }
  }
}

// The row of an edge, where it is one of those that are here.
template <class Value, class Id>
GNNSYS_TARGET inline void prefetch_source(const Job<Value, Id>& job, int64_t edge) {
  const int64_t place = static_cast<int64_t>(job.targets.source[edge]) - job.first;
  if (place < 0 || place >= job.n) return;
  const int64_t row_bytes = job.width * static_cast<int64_t>(sizeof(Value));
  const auto* const row = reinterpret_cast<const char*>(job.rows + place * job.width);
  for (int64_t b = 0; b < std::min(row_bytes, kPrefetchBytes); b += kLine) {
    __builtin_prefetch(row + b, 0, 3);
  }
}

template <Fold How, class Value, class Id>
GNNSYS_TARGET int64_t fold_targets(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  const FoldedTargets<Id>& targets = job.targets;
  for (int64_t target = begin; target < end; ++target) {
    const int64_t stop = targets.indptr[target + 1];
    const int64_t own = targets.first < 0 ? -1 : targets.first + target;
    Value* const out = job.out + target * job.width;
    int64_t edge = targets.next[target];
    for (; edge < stop; ++edge) {
      const auto source = static_cast<int64_t>(targets.source[edge]);
      const int64_t place = source - job.first;
      if (place >= job.n) break;
      if (place < 0) return edge;
      if (edge + kPrefetchEdges < stop) prefetch_source(job, edge + kPrefetchEdges);
      if (source != own) fold_row<How>(out, job.rows + place * job.width, job.width);
    }
    targets.next[target] = edge;
  }
  return -1;
}

}  // namespace GNNSYS_NAMESPACE
