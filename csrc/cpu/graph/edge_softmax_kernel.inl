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

template <class Float>
GNNSYS_TARGET inline void keep_most(Float* __restrict most, const Float* __restrict z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) most[i] = z[i] > most[i] ? z[i] : most[i];
}

// The slope is a value of its own: a branch on each sign would cost more than all else.
template <class Float>
GNNSYS_TARGET inline void leak(Float* __restrict z, Float slope, int64_t n) {
  for (int64_t i = 0; i < n; ++i) z[i] = z[i] * (z[i] > 0 ? Float(1) : slope);
}

template <class Float>
GNNSYS_TARGET inline void subtract(Float* __restrict z, const Float* __restrict most, int64_t n) {
  for (int64_t i = 0; i < n; ++i) z[i] -= most[i];
}

// The sums of an edge's logits before the slope; returns false for a source that is no row.
template <class Value, class Id>
GNNSYS_TARGET inline bool add_logits(const Job<Value, Id>& job, int64_t heads, int64_t edge,
                                     int64_t target, Wide<Value>* __restrict z) {
  std::fill(z, z + heads, Wide<Value>(0));
  if (job.edge) add_row(z, job.edge + job.place(edge), heads);
  if (job.source) {
    const int64_t source = static_cast<int64_t>(job.source_of[edge]);
    if (static_cast<uint64_t>(source) >= static_cast<uint64_t>(job.num_sources)) return false;
    add_row(z, job.source + source * heads, heads);
  }
  if (job.target) add_row(z, job.target + target * heads, heads);
  return true;
}

// z (heads) of an edge whose logits are finite is all that its target has: 1, else NaN.
template <class Float, class Value>
GNNSYS_TARGET inline void take_all(const Float* z, int64_t heads, Value* out) {
  for (int64_t h = 0; h < heads; ++h) narrow(Float(1) + (z[h] - z[h]), out[h]);
}

template <int64_t kHeads, class Value, class Id>
GNNSYS_TARGET int64_t softmax_heads(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  using Float = Wide<Value>;
  const int64_t heads = kHeads > 0 ? kHeads : job.heads, last = job.indptr[end];
  std::vector<Float> buffer;
  Row<Float, kHeads> most(heads), total(heads);
  for (int64_t target = begin; target < end; ++target) {
    const int64_t from = job.indptr[target], count = job.indptr[target + 1] - from;
    if (count == 0) continue;
    if (static_cast<int64_t>(buffer.size()) < count * heads) buffer.resize(count * heads);
    Float* const z = buffer.data();  // (count, heads)
    for (int64_t e = 0; e < count; ++e) {
      prefetch_logits(job, from + e + kPrefetchEdges, last);
      if (!add_logits(job, heads, from + e, target, z + e * heads)) return from + e;
    }
    if (count == 1) {
      take_all(z, heads, job.out + job.place(from));
      continue;
    }
    if (job.leaky) leak(z, job.slope, count * heads);
    std::copy(z, z + heads, most.data());
    for (int64_t e = 1; e < count; ++e) keep_most(most.data(), z + e * heads, heads);
    for (int64_t e = 0; e < count; ++e) subtract(z + e * heads, most.data(), heads);
    exponentiate(z, count * heads);
    std::fill(total.data(), total.data() + heads, Float(0));
    for (int64_t e = 0; e < count; ++e) add_row(total.data(), z + e * heads, heads);
    for (int64_t e = 0; e < count; ++e) {
      Value* const out = job.out + job.place(from + e);
      for (int64_t h = 0; h < heads; ++h) narrow(z[e * heads + h] / total[h], out[h]);
    }
  }
  return -1;
}

// Writes the derivative by the logits of an edge and adds it to the total.
template <class Value>
GNNSYS_TARGET inline void add_derivative(const Value* __restrict alpha,
                                         const Value* __restrict grad,
                                         const Wide<Value>* __restrict mean,
                                         const Wide<Value>* __restrict slope, int64_t n,
                                         Wide<Value>* __restrict total, Value* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const Wide<Value> derivative = widen(alpha[i]) * (widen(grad[i]) - mean[i]) * slope[i];
    total[i] += derivative;
    narrow(derivative, out[i]);
  }
}

template <int64_t kHeads, class Value, class Id>
GNNSYS_TARGET int64_t derive_heads(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  using Float = Wide<Value>;
  const int64_t heads = kHeads > 0 ? kHeads : job.heads, last = job.indptr[end];
  const Float negative = job.leaky ? job.slope : Float(1);
  Row<Float, kHeads> mean(heads), total(heads), z(heads);
  for (int64_t target = begin; target < end; ++target) {
    const int64_t from = job.indptr[target], to = job.indptr[target + 1];
    std::fill(mean.data(), mean.data() + heads, Float(0));
    std::fill(total.data(), total.data() + heads, Float(0));
    for (int64_t edge = from; edge < to; ++edge) {
      const Value* const alpha = job.alpha + job.place(edge);
      const Value* const grad = job.grad + job.place(edge);
      for (int64_t h = 0; h < heads; ++h) mean[h] += widen(alpha[h]) * widen(grad[h]);
    }
    const bool leaky = job.leaky && to > from + 1;  // the derivative of a share of 1 is 0
    if (!leaky) std::fill(z.data(), z.data() + heads, Float(1));
    for (int64_t edge = from; edge < to; ++edge) {
      if (leaky) {
        prefetch_logits(job, edge + kPrefetchEdges, last);
        if (!add_logits(job, heads, edge, target, z.data())) return edge;
      }
      const Value* const alpha = job.alpha + job.place(edge);
      const Value* const grad = job.grad + job.place(edge);
      Value* const out = job.out + job.place(edge);
      for (int64_t h = 0; h < heads; ++h) z[h] = z[h] > 0 ? Float(1) : negative;
      add_derivative(alpha, grad, mean.data(), z.data(), heads, total.data(), out);
    }
    if (!job.of_targets) continue;
    for (int64_t h = 0; h < heads; ++h) narrow(total[h], job.of_targets[target * heads + h]);
  }
  return -1;
}

template <int64_t kHeads, class Value, class Id>
GNNSYS_TARGET int64_t sum_heads(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  using Float = Wide<Value>;
  const int64_t heads = kHeads > 0 ? kHeads : job.heads, last = job.indptr[end];
  Row<Float, kHeads> total(heads);
  for (int64_t target = begin; target < end; ++target) {
    std::fill(total.data(), total.data() + heads, Float(0));
    for (int64_t edge = job.indptr[target]; edge < job.indptr[target + 1]; ++edge) {
      const int64_t later = edge + kPrefetchEdges;
      if (later < last) __builtin_prefetch(job.edge + job.place(later));
      add_row(total.data(), job.edge + job.place(edge), heads);
    }
    for (int64_t h = 0; h < heads; ++h) narrow(total[h], job.out[target * heads + h]);
  }
  return -1;
}

#define GNNSYS_BY_HEADS(NAME, KERNEL)                                                 \
  template <class Value, class Id>                                                    \
  GNNSYS_TARGET int64_t NAME(const Job<Value, Id>& job, int64_t begin, int64_t end) { \
    switch (job.heads) {                                                              \
      case 1:                                                                         \
        return KERNEL<1>(job, begin, end);                                            \
      case 2:                                                                         \
        return KERNEL<2>(job, begin, end);                                            \
      case 3:                                                                         \
        return KERNEL<3>(job, begin, end);                                            \
      case 4:                                                                         \
        return KERNEL<4>(job, begin, end);                                            \
      case 6:                                                                         \
        return KERNEL<6>(job, begin, end);                                            \
      case 8:                                                                         \
        return KERNEL<8>(job, begin, end);                                            \
      default:                                                                        \
        return KERNEL<0>(job, begin, end);                                            \
    }                                                                                 \
  }
GNNSYS_BY_HEADS(softmax_targets, softmax_heads)
GNNSYS_BY_HEADS(derive_targets, derive_heads)
GNNSYS_BY_HEADS(sum_of_targets, sum_heads)
#undef GNNSYS_BY_HEADS

}  // namespace GNNSYS_NAMESPACE
