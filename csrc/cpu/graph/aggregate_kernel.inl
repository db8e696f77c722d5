// The loops over edges, compiled once for each instruction set: aggregate.cpp includes this with
// GNNSYS_NAMESPACE and GNNSYS_TARGET set. Every function carries the target, so that none of them
// can stand in for another instruction set's when the linker merges templates.

namespace GNNSYS_NAMESPACE {

#include "rows/row_kernel.inl"

template <class Value, class Id>
GNNSYS_TARGET inline void prefetch_row(const Job<Value, Id>& job, int64_t edge, int64_t last) {
  if (edge >= last) return;
  const int64_t row_bytes = job.width() * static_cast<int64_t>(sizeof(Value));
  const uintptr_t row = reinterpret_cast<uintptr_t>(job.x) +
                        static_cast<uint64_t>(job.source[edge]) * static_cast<uint64_t>(row_bytes);
  for (int64_t b = 0; b < std::min(row_bytes, kPrefetchBytes); b += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(row + static_cast<uintptr_t>(b)), 0, 3);
  }
}

// Numbers of channels so small that a loop over them would cost more than they do.
#define GNNSYS_FEW_CHANNELS(CASE) \
  CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(16) CASE(32)

template <int64_t Channels, class Value>
GNNSYS_TARGET inline void add_heads(const Value* row, const Value* weights, Wide<Value> scale,
                                    int64_t heads, Wide<Value>* sum) {
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t at = head * Channels;
    add_multiple(sum + at, row + at, scale * widen(weights[head]), Channels);
  }
}

// Adds columns [first, first + n) of one edge's row.
template <class Value, class Id>
GNNSYS_TARGET inline void add_edge(const Job<Value, Id>& job, int64_t edge, int64_t source,
                                   int64_t first, int64_t n, Wide<Value>* sum) {
  const Value* const row = job.x + source * job.width() + first;
  const Wide<Value> scale = job.scale ? widen(job.scale[source]) : Wide<Value>(1);
  if (!job.weight) {
    add_multiple(sum, row, scale, n);
    return;
  }
  const int64_t place = job.order ? static_cast<int64_t>(job.order[edge]) : edge;
  const Value* const weights = job.weight + place * job.heads;
  if (n == job.width() && job.heads > 1) {
    switch (job.channels) {
#define GNNSYS_CASE(CHANNELS) \
  case CHANNELS:              \
    return add_heads<CHANNELS>(row, weights, scale, job.heads, sum);
      GNNSYS_FEW_CHANNELS(GNNSYS_CASE)
#undef GNNSYS_CASE
    }
  }
  for (int64_t head = first / job.channels, at = 0; at < n; ++head) {
    const int64_t stop = std::min(n, (head + 1) * job.channels - first);
    add_multiple(sum + at, row + at, scale * widen(weights[head]), stop - at);
    at = stop;
  }
}

template <class Value, class Id>
GNNSYS_TARGET int64_t sum_targets(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  const int64_t* const indptr = job.indptr;
  const int64_t width = job.width();
  const int64_t last = indptr[end];
  Wide<Value> sum[kBlock];
  for (int64_t target = begin; target < end; ++target) {
    const int64_t from = indptr[target], to = indptr[target + 1];
    Value* const out = job.out + target * width;
    if (from == to) {
      std::memset(static_cast<void*>(out), 0, width * sizeof(Value));
      continue;
    }
    for (int64_t first = 0; first < width; first += kBlock) {
      const int64_t n = std::min(kBlock, width - first);
      std::fill(sum, sum + n, Wide<Value>(0));
      for (int64_t edge = from; edge < to; ++edge) {
        if (first == 0) prefetch_row(job, edge + kPrefetchEdges, last);
        const int64_t source = static_cast<int64_t>(job.source[edge]);
        if (static_cast<uint64_t>(source) >= static_cast<uint64_t>(job.num_rows)) return edge;
        add_edge(job, edge, source, first, n, sum);
      }
      if (job.mean) {
        for (int64_t i = 0; i < n; ++i) sum[i] /= static_cast<Wide<Value>>(to - from);
      }
      for (int64_t i = 0; i < n; ++i) narrow(sum[i], out[first + i]);
    }
  }
  return -1;
}

template <int64_t Channels, class Value>
GNNSYS_TARGET inline void dot_heads(const Value* x, const Value* y, Wide<Value> factor,
                                    int64_t heads, Value* out) {
  for (int64_t head = 0, at = 0; head < heads; ++head, at += Channels) {
    narrow(factor * dot(x + at, y + at, Channels), out[head]);
  }
}

template <class Value, class Id>
GNNSYS_TARGET int64_t dot_targets(const Job<Value, Id>& job, int64_t begin, int64_t end) {
  const int64_t* const indptr = job.indptr;
  const int64_t heads = job.heads, channels = job.channels;
  const int64_t last = indptr[end];
  for (int64_t target = begin; target < end; ++target) {
    const int64_t from = indptr[target], to = indptr[target + 1];
    const Value* const y = job.y + target * job.width();
    for (int64_t edge = from; edge < to; ++edge) {
      prefetch_row(job, edge + kPrefetchEdges, last);
      const int64_t source = static_cast<int64_t>(job.source[edge]);
      if (static_cast<uint64_t>(source) >= static_cast<uint64_t>(job.num_rows)) return edge;
      Wide<Value> factor = job.scale ? widen(job.scale[source]) : Wide<Value>(1);
      if (job.mean) factor /= static_cast<Wide<Value>>(to - from);
      const int64_t place = job.order ? static_cast<int64_t>(job.order[edge]) : edge;
      const Value* const x = job.x + source * job.width();
      Value* const out = job.out + place * heads;
      switch (channels) {
#define GNNSYS_CASE(CHANNELS)                      \
  case CHANNELS:                                   \
    dot_heads<CHANNELS>(x, y, factor, heads, out); \
    break;
        GNNSYS_FEW_CHANNELS(GNNSYS_CASE)
#undef GNNSYS_CASE
        default:
          for (int64_t head = 0, at = 0; head < heads; ++head, at += channels) {
            narrow(factor * dot(x + at, y + at, channels), out[head]);
          }
      }
    }
  }
  return -1;
}

#undef GNNSYS_FEW_CHANNELS

}  // namespace GNNSYS_NAMESPACE
