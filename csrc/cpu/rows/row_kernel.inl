// Loops over the columns of rows, compiled once for each instruction set: included by other
// kernels, inside GNNSYS_NAMESPACE.

template <class Value, class Sum>
GNNSYS_TARGET inline void add_multiple(Sum* __restrict sum, const Value* __restrict x, Sum factor,
                                       int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += factor * widen(x[i]);
}

// Lane by lane in an order of its own, which is the same whatever the width of a vector is.
template <class Value>
GNNSYS_TARGET inline Wide<Value> dot(const Value* __restrict x, const Value* __restrict y,
                                     int64_t n) {
  constexpr int64_t kLanes = 8;
  Wide<Value> lanes[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += widen(x[i + k]) * widen(y[i + k]);
  }
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += widen(x[i]) * widen(y[i]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  }
  return lanes[0];
}
