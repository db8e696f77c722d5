// The loops over edges, compiled once for each instruction set: additive_logits.cpp includes this
// with GNNSYS_NAMESPACE and GNNSYS_TARGET set.

namespace GNNSYS_NAMESPACE {

template <class Value, class Id>
GNNSYS_TARGET inline void prefetch_row(const Job<Value, Id>& job, int64_t position, int64_t last) {
  if (position >= last) return;
  const int64_t row_bytes = job.width() * static_cast<int64_t>(sizeof(Value));
  const uintptr_t row =
      reinterpret_cast<uintptr_t>(job.x) +
      static_cast<uint64_t>(job.other[position]) * static_cast<uint64_t>(row_bytes);
  for (int64_t b = 0; b < std::min(row_bytes, kPrefetchBytes); b += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(row + static_cast<uintptr_t>(b)), 0, 3);
  }
}

// u (n) = the sum of an edge's rows.
template <class Value>
GNNSYS_TARGET inline void add_rows(const Value* __restrict x, const Value* __restrict y,
                                   const Value* __restrict edge, int64_t n,
                                   Wide<Value>* __restrict u) {
  for (int64_t i = 0; i < n; ++i) u[i] = widen(x[i]) + widen(y[i]);
  if (!edge) return;
  for (int64_t i = 0; i < n; ++i) u[i] += widen(edge[i]);
}

// The dot product of att and leaky(u), lane by lane in an order that is the same whatever the width
// of a vector is.
template <class Value>
GNNSYS_TARGET inline Wide<Value> leaky_dot(const Wide<Value>* __restrict u,
                                           const Value* __restrict att, Wide<Value> slope,
                                           int64_t n) {
  constexpr int64_t kLanes = 8;
  using Float = Wide<Value>;
  const auto term = [&](int64_t i) {
    return widen(att[i]) * (u[i] * (u[i] > 0 ? Float(1) : slope));
  };
  Float lanes[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += term(i + k);
  }
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += term(i);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  }
  return lanes[0];
}

template <class Value, class Id>
GNNSYS_TARGET int64_t logits_of_groups(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  const int64_t heads = job.heads, channels = job.channels, width = job.width();
  const int64_t last = job.indptr[end];
  std::vector<Wide<Value>> u(width);
  for (int64_t group = begin; group < end; ++group) {
    const Value* const y = job.y + group * width;
    for (int64_t p = job.indptr[group]; p < job.indptr[group + 1]; ++p) {
      prefetch_row(job, p + kPrefetchEdges, last);
      const int64_t other = static_cast<int64_t>(job.other[p]), place = job.place(p);
      if (static_cast<uint64_t>(other) >= static_cast<uint64_t>(job.num_rows)) return p;
      const Value* const edge = job.edge ? job.edge + place * width : nullptr;
      add_rows(job.x + other * width, y, edge, width, u.data());
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t first = h * channels;
        narrow(leaky_dot(u.data() + first, job.att + first, job.slope, channels),
               job.out[place * heads + h]);
      }
    }
  }
  return -1;
}

// Adds one head of an edge: grad times leaky' to the sum, grad times leaky(u) to of_att.
template <class Float>
GNNSYS_TARGET inline void add_slopes(const Float* __restrict u, Float grad, Float slope, int64_t n,
                                     Float* __restrict sum, Float* __restrict of_att) {
  for (int64_t i = 0; i < n; ++i) sum[i] += grad * (u[i] > 0 ? Float(1) : slope);
  if (!of_att) return;
  for (int64_t i = 0; i < n; ++i) of_att[i] += grad * (u[i] * (u[i] > 0 ? Float(1) : slope));
}

template <class Value, class Id>
GNNSYS_TARGET int64_t derive_groups(const Job<Value, Id>& job, int64_t begin, int64_t end,
                                    double* of_att) {
  using Float = Wide<Value>;
  const int64_t heads = job.heads, channels = job.channels, width = job.width();
  const int64_t last = job.indptr[end];
  const Float negative = job.slope;
  // The derivative by att is a sum over all edges: of a group in the values' own precision, of
  // groups in double.
  std::vector<Float> u(width), sum(width), part(of_att ? width : 0);
  for (int64_t group = begin; group < end; ++group) {
    const Value* const y = job.y + group * width;
    std::fill(sum.begin(), sum.end(), Float(0));
    std::fill(part.begin(), part.end(), Float(0));
    for (int64_t p = job.indptr[group]; p < job.indptr[group + 1]; ++p) {
      prefetch_row(job, p + kPrefetchEdges, last);
      const int64_t other = static_cast<int64_t>(job.other[p]), place = job.place(p);
      if (static_cast<uint64_t>(other) >= static_cast<uint64_t>(job.num_rows)) return p;
      const Value* const edge = job.edge ? job.edge + place * width : nullptr;
      add_rows(job.x + other * width, y, edge, width, u.data());
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t first = h * channels;
        const Float grad = widen(job.grad[place * heads + h]);
        add_slopes(u.data() + first, grad, negative, channels, sum.data() + first,
                   of_att ? part.data() + first : nullptr);
        if (!job.of_edges) continue;
        Value* const out = job.of_edges + place * width + first;
        for (int64_t c = 0; c < channels; ++c) {
          const Float slope = u[first + c] > 0 ? Float(1) : negative;
          narrow(grad * slope * widen(job.att[first + c]), out[c]);
        }
      }
    }
    for (int64_t i = 0; i < width; ++i)
      narrow(sum[i] * widen(job.att[i]), job.out[group * width + i]);
    if (!of_att) continue;
    for (int64_t i = 0; i < width; ++i) of_att[i] += part[i];
  }
  return -1;
}

}  // namespace GNNSYS_NAMESPACE
