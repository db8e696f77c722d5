// The loops over edges, compiled once for each instruction set: edge_softmax.cpp includes this with
// GNNSYS_NAMESPACE and GNNSYS_TARGET set.

namespace GNNSYS_NAMESPACE {

// Of values up to 0, by the same operations in whatever width: up to 2 units in the last place.
template <class Float>
GNNSYS_TARGET inline void exponentiate(Float* __restrict values, int64_t n) {
  using E = Exponential<Float>;
  using Bits = typename E::Bits;
  constexpr Taylor<Float, E::kDegree> taylor;
  constexpr Float kPerLn2 = static_cast<Float>(1.4426950408889634);
  for (int64_t i = 0; i < n; ++i) {
    const Float given = values[i];
    const Float x = given < E::kLeast ? E::kLeast : given;
    const Float shifted = x * kPerLn2 + E::kShift;
    const Float whole = shifted - E::kShift;
    const Float rest = (x - whole * E::kHigh) - whole * E::kLow;
    Float sum = taylor.of[E::kDegree];
    for (int k = E::kDegree - 1; k >= 0; --k) sum = sum * rest + taylor.of[k];
    const Bits power = (std::bit_cast<Bits>(shifted) << E::kMantissa) + E::kOne;
    const Float result = sum * std::bit_cast<Float>(power);
    values[i] = given < E::kLeast ? Float(0) : result;
  }
}

template <class Value, class Id>
GNNSYS_TARGET inline void prefetch_logits(const Job<Value, Id>& job, int64_t edge, int64_t last) {
  if (edge >= last || !job.source) return;
  const int64_t row_bytes = job.heads * static_cast<int64_t>(sizeof(Value));
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(job.source) +
                                                   static_cast<uint64_t>(job.source_of[edge]) *
                                                       static_cast<uint64_t>(row_bytes)));
}

template <class Value>
GNNSYS_TARGET inline void add_row(Wide<Value>* __restrict sum, const Value* __restrict row,
                                  int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += widen(row[i]);
}

// The sums of an edge's logits before the slope; returns false for a source that is no row.
template <class Value, class Id>
GNNSYS_TARGET inline bool add_logits(const Job<Value, Id>& job, int64_t edge, int64_t target,
                                     Wide<Value>* __restrict z) {
  std::fill(z, z + job.heads, Wide<Value>(0));
  if (job.edge) add_row(z, job.edge + job.place(edge), job.heads);
  if (job.source) {
    const int64_t source = static_cast<int64_t>(job.source_of[edge]);
    if (static_cast<uint64_t>(source) >= static_cast<uint64_t>(job.num_sources)) return false;
    add_row(z, job.source + source * job.heads, job.heads);
  }
  if (job.target) add_row(z, job.target + target * job.heads, job.heads);
  return true;
}

template <class Value, class Id>
GNNSYS_TARGET int64_t softmax_targets(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  using Float = Wide<Value>;
  const int64_t heads = job.heads, last = job.indptr[end];
  std::vector<Float> buffer;
  std::vector<Float> most(heads), total(heads);
  for (int64_t target = begin; target < end; ++target) {
    const int64_t from = job.indptr[target], count = job.indptr[target + 1] - from;
    if (count == 0) continue;
    if (static_cast<int64_t>(buffer.size()) < count * heads) buffer.resize(count * heads);
    Float* const z = buffer.data();  // (count, heads)
    for (int64_t e = 0; e < count; ++e) {
      prefetch_logits(job, from + e + kPrefetchEdges, last);
      Float* const row = z + e * heads;
      if (!add_logits(job, from + e, target, row)) return from + e;
      if (job.leaky) {
        for (int64_t h = 0; h < heads; ++h) row[h] = row[h] > 0 ? row[h] : row[h] * job.slope;
      }
      for (int64_t h = 0; h < heads; ++h) {
        most[h] = e == 0 || row[h] > most[h] ? row[h] : most[h];
      }
    }
    for (int64_t e = 0; e < count; ++e) {
      for (int64_t h = 0; h < heads; ++h) z[e * heads + h] -= most[h];
    }
    exponentiate(z, count * heads);
    std::fill(total.begin(), total.end(), Float(0));
    for (int64_t e = 0; e < count; ++e) {
      for (int64_t h = 0; h < heads; ++h) total[h] += z[e * heads + h];
    }
    for (int64_t e = 0; e < count; ++e) {
      Value* const out = job.out + job.place(from + e);
      for (int64_t h = 0; h < heads; ++h) narrow(z[e * heads + h] / total[h], out[h]);
    }
  }
  return -1;
}

template <class Value, class Id>
GNNSYS_TARGET int64_t derive_targets(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  using Float = Wide<Value>;
  const int64_t heads = job.heads, last = job.indptr[end];
  std::vector<Float> mean(heads), total(heads), z(heads);
  for (int64_t target = begin; target < end; ++target) {
    const int64_t from = job.indptr[target], to = job.indptr[target + 1];
    std::fill(mean.begin(), mean.end(), Float(0));
    std::fill(total.begin(), total.end(), Float(0));
    for (int64_t edge = from; edge < to; ++edge) {
      const Value* const alpha = job.alpha + job.place(edge);
      const Value* const grad = job.grad + job.place(edge);
      for (int64_t h = 0; h < heads; ++h) mean[h] += widen(alpha[h]) * widen(grad[h]);
    }
    for (int64_t edge = from; edge < to; ++edge) {
      if (job.leaky) {
        prefetch_logits(job, edge + kPrefetchEdges, last);
        if (!add_logits(job, edge, target, z.data())) return edge;
      }
      const int64_t place = job.place(edge);
      for (int64_t h = 0; h < heads; ++h) {
        const Float alpha = widen(job.alpha[place + h]);
        Float slope = alpha * (widen(job.grad[place + h]) - mean[h]);
        if (job.leaky) slope *= z[h] > 0 ? Float(1) : job.slope;
        total[h] += slope;
        narrow(slope, job.out[place + h]);
      }
    }
    if (!job.of_targets) continue;
    for (int64_t h = 0; h < heads; ++h) narrow(total[h], job.of_targets[target * heads + h]);
  }
  return -1;
}

template <class Value, class Id>
GNNSYS_TARGET int64_t sum_of_targets(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  const int64_t heads = job.heads, last = job.indptr[end];
  std::vector<Wide<Value>> total(heads);
  for (int64_t target = begin; target < end; ++target) {
    std::fill(total.begin(), total.end(), Wide<Value>(0));
    for (int64_t edge = job.indptr[target]; edge < job.indptr[target + 1]; ++edge) {
      const int64_t later = edge + kPrefetchEdges;
      if (later < last) __builtin_prefetch(job.edge + job.place(later));
      add_row(total.data(), job.edge + job.place(edge), heads);
    }
    for (int64_t h = 0; h < heads; ++h) narrow(total[h], job.out[target * heads + h]);
  }
  return -1;
}

}  // namespace GNNSYS_NAMESPACE
