// Products of small matrices, tile by tile in registers: each_isa.inl compiles them for each
// instruction set, of which segment_matmul.cpp tells kVectorBytes and kRows.

namespace GNNSYS_NAMESPACE {

// Columns of the widest tile: two vectors. Others have a half or a quarter of that.
template <class Number>
constexpr int64_t kPanel = 2 * kVectorBytes / static_cast<int64_t>(sizeof(Number));

template <class Number>
GNNSYS_TARGET inline int64_t tile_width(int64_t columns) {
  constexpr int64_t panel = kPanel<Number>;
  return columns > panel / 2 ? panel : (columns > panel / 4 ? panel / 2 : panel / 4);
}

template <class Number>
GNNSYS_TARGET inline bool fills_tiles(int64_t columns) {
  const int64_t rest = columns % kPanel<Number>;
  return rest == 0 || rest == tile_width<Number>(rest);
}

template <class Number, int64_t Width>
struct VectorOf {
  static constexpr int64_t kBytes =
      std::min<int64_t>(kVectorBytes, Width* static_cast<int64_t>(sizeof(Number)));
  typedef Number type __attribute__((vector_size(kBytes)));
};

// What a tile's sums are made of, over the steps s: left[i][first + s] * right[s * stride + c] for
// row i and column c; with Across, left[s][first + i] * right[s * stride + c].
template <class Number>
struct Factors {
  const Number* const* left;
  int64_t first;
  const Number* right;
  int64_t stride, steps;
};

// Where the sums go: row i from `to` + i * stride on, `columns` of them; added to what is there,
// which takes all columns of the tile.
template <class Value>
struct Place {
  Value* to;
  int64_t stride, columns;
  bool add;
};

template <int64_t Width, class Value>
GNNSYS_TARGET [[gnu::always_inline]] inline void write_row(const Wide<Value>* sums, Value* to,
                                                           const Place<Value>& place) {
  if (place.columns < Width) {
    for (int64_t c = 0; c < place.columns; ++c) narrow(sums[c], to[c]);
  } else if (place.add) {
    for (int64_t c = 0; c < Width; ++c) narrow(widen(to[c]) + sums[c], to[c]);
  } else {
    for (int64_t c = 0; c < Width; ++c) narrow(sums[c], to[c]);
  }
}

// Each sum in the order of the steps, whatever Rows and Width are.
template <int Rows, int64_t Width, bool Across, class Value, class Number>
GNNSYS_TARGET void multiply_tile(const Factors<Number>& factors, const Place<Value>& place) {
  using Vector = typename VectorOf<Number, Width>::type;
  constexpr int64_t kLanes = static_cast<int64_t>(sizeof(Vector) / sizeof(Number));
  constexpr int kVectors = static_cast<int>(Width / kLanes);
  const Number* rows[Rows];
  Vector sum[Rows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    rows[i] = Across ? nullptr : factors.left[i] + factors.first;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector{};
  }
  const Number* right = factors.right;
  for (int64_t s = 0; s < factors.steps; ++s, right += factors.stride) {
    Vector of_right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      std::memcpy(&of_right[v], right + v * kLanes, sizeof of_right[v]);
    }
    const Number* const across = Across ? factors.left[s] + factors.first : nullptr;
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Number of_left = Across ? across[i] : rows[i][s];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += of_left * of_right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    Number sums[Width];
    std::memcpy(sums, sum[i], sizeof sums);
    write_row<Width>(sums, place.to + i * place.stride, place);
  }
}

// multiply_tile with as many rows as there are, up to Rows, and just enough columns.
template <bool Across, int Rows = kRows, class Value, class Number>
GNNSYS_TARGET inline void multiply_some(int64_t rows, const Factors<Number>& factors,
                                        const Place<Value>& place) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_some<Across, Rows - 1>(rows, factors, place);
  }
  constexpr int64_t panel = kPanel<Number>;
  const int64_t width = tile_width<Number>(place.columns);
  if (width == panel) {
    multiply_tile<Rows, panel, Across>(factors, place);
  } else if (width == panel / 2) {
    multiply_tile<Rows, panel / 2, Across>(factors, place);
  } else {
    multiply_tile<Rows, panel / 4, Across>(factors, place);
  }
}

// A copy of a (rows, columns) matrix in panels that are zero behind the last column.
template <class Value>
GNNSYS_TARGET Panels<Wide<Value>> pack(const Value* matrix, int64_t row_stride,
                                       int64_t column_stride, int64_t rows, int64_t columns,
                                       Wide<Value>* room) {
  constexpr int64_t panel = kPanel<Wide<Value>>;
  Wide<Value>* to = room;
  for (int64_t first = 0; first < columns; first += panel, to += rows * panel) {
    const int64_t n = std::min(panel, columns - first);
    const Value* const from = matrix + first * column_stride;
    if (n < panel) std::fill(to, to + rows * panel, Wide<Value>(0));
    if (column_stride == 1) {
      for (int64_t k = 0; k < rows; ++k) {
        for (int64_t c = 0; c < n; ++c) to[k * panel + c] = widen(from[k * row_stride + c]);
      }
    } else {
      for (int64_t c = 0; c < n; ++c) {
        for (int64_t k = 0; k < rows; ++k) {
          to[k * panel + c] = widen(from[c * column_stride + k * row_stride]);
        }
      }
    }
  }
  return {room, rows * panel, panel};
}

template <class Value>
GNNSYS_TARGET inline int64_t packed_size(int64_t rows, int64_t columns) {
  constexpr int64_t panel = kPanel<Wide<Value>>;
  return (columns + panel - 1) / panel * panel * rows;
}

// The address of `width` values of x; for others than Wide, of a copy of them in `room`.
template <class Value>
GNNSYS_TARGET inline const Wide<Value>* wide_row(const Value* from, int64_t width,
                                                 [[maybe_unused]] Wide<Value>* room) {
  if constexpr (std::is_same_v<Value, Wide<Value>>) {
    return from;
  } else {
    for (int64_t k = 0; k < width; ++k) room[k] = widen(from[k]);
    return room;
  }
}

// Columns from `first` on of the rows of x that rows [p, p + n) of the result read, to `rows`;
// fetches those of the next rows ahead. Returns -1, or a row whose index is no row of x.
template <class Value>
GNNSYS_TARGET int64_t find_rows(const Job<Value>& job, int64_t p, int64_t n, int64_t ahead,
                                int64_t first, int64_t width, Scratch<Value>& scratch,
                                const Wide<Value>** rows) {
  const int64_t last = job.ptr[job.num_types];
  const int64_t bytes = std::min(width * static_cast<int64_t>(sizeof(Value)), kPrefetchBytes);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = job.row_of(p + i);
    if (!job.has_row(row)) return p + i;
    rows[i] =
        wide_row(job.x + row * job.row_width() + first, width, scratch.rows.data() + i * width);
    if (p + i + ahead >= last) continue;
    const uint64_t next = static_cast<uint64_t>(job.row_of(p + i + ahead));
    const uintptr_t address = reinterpret_cast<uintptr_t>(job.x + first) +
                              next * static_cast<uint64_t>(job.row_width()) * sizeof(Value);
    for (int64_t b = 0; b < bytes; b += kLine) {
      __builtin_prefetch(reinterpret_cast<const char*>(address + static_cast<uintptr_t>(b)), 0, 3);
    }
  }
  return -1;
}

// Rows [begin, end) of the result, which are of one type.
template <class Value>
GNNSYS_TARGET int64_t multiply_segment(const Job<Value>& job, int64_t type, int64_t begin,
                                       int64_t end, Scratch<Value>& scratch) {
  using Number = Wide<Value>;
  constexpr int64_t panel = kPanel<Number>;
  const auto [of_type, of_block, of_row, of_column] = job.strides;
  const bool in_place =
      std::is_same_v<Value, Number> && of_column == 1 && fills_tiles<Number>(job.columns);
  const int64_t size = packed_size<Value>(job.width, job.columns);
  if (!in_place) scratch.matrix.resize(static_cast<size_t>(job.blocks * size));
  scratch.panels.clear();
  for (int64_t block = 0; block < job.blocks; ++block) {
    const Value* const weight = job.weight + type * of_type + block * of_block;
    scratch.panels.push_back(
        in_place ? Panels<Number>{reinterpret_cast<const Number*>(weight), panel, of_row}
                 : pack(weight, of_row, of_column, job.width, job.columns,
                        scratch.matrix.data() + block * size));
  }
  scratch.rows.resize(static_cast<size_t>(kRows * job.row_width()));
  const int64_t stride = job.blocks * job.columns;
  const Number* rows[kRows];
  for (int64_t p = begin; p < end; p += kRows) {
    const int64_t n = std::min<int64_t>(kRows, end - p);
    const int64_t bad = find_rows(job, p, n, kRows, 0, job.row_width(), scratch, rows);
    if (bad >= 0) return bad;
    Value* out = job.out + p * stride;
    for (int64_t block = 0; block < job.blocks; ++block, out += job.columns) {
      const Panels<Number>& right = scratch.panels[static_cast<size_t>(block)];
      const Number* of_panel = right.first;
      for (int64_t c = 0; c < job.columns; c += panel, of_panel += right.panel) {
        const int64_t columns = std::min(panel, job.columns - c);
        multiply_some<false>(
            n, Factors<Number>{rows, block * job.width, of_panel, right.row, job.width},
            Place<Value>{out + c, stride, columns, false});
      }
    }
  }
  return -1;
}

// Rows [begin, end) of the result. Returns -1, or a row whose index is no row of x.
template <class Value>
GNNSYS_TARGET int64_t multiply_rows(const Job<Value>& job, int64_t begin, int64_t end) {
  Scratch<Value> scratch;
  int64_t type = std::upper_bound(job.ptr, job.ptr + job.num_types + 1, begin) - job.ptr - 1;
  for (; begin < end; ++type) {
    const int64_t stop = std::min(end, job.ptr[type + 1]);
    if (begin == stop) continue;
    const int64_t bad = multiply_segment(job, type, begin, stop, scratch);
    if (bad >= 0) return bad;
    begin = stop;
  }
  return -1;
}

// The sums of a unit, to `out`, a row every `stride`. Each chunk of rows is summed on its own,
// which loses less in float32. Returns as multiply_rows.
template <class Value>
GNNSYS_TARGET int64_t sum_chunks(const Job<Value>& job, const OuterUnit& unit,
                                 Scratch<Value>& scratch, Wide<Value>* out, int64_t stride) {
  using Number = Wide<Value>;
  constexpr int64_t panel = kPanel<Number>;
  const int64_t from = job.ptr[unit.type], to = job.ptr[unit.type + 1];
  const int64_t grad_stride = job.blocks * job.columns;
  const bool in_place = std::is_same_v<Value, Number> && fills_tiles<Number>(job.columns);
  if (!in_place) {
    scratch.matrix.resize(static_cast<size_t>(packed_size<Value>(kChunk, job.columns)));
  }
  scratch.rows.resize(static_cast<size_t>(kChunk * (unit.end - unit.begin)));
  const Number* rows[kChunk];
  for (int64_t p = from; p < to; p += kChunk) {
    const int64_t n = std::min(kChunk, to - p);
    const int64_t bad =
        find_rows(job, p, n, kChunk, unit.begin, unit.end - unit.begin, scratch, rows);
    if (bad >= 0) return bad;
    for (int64_t begin = unit.begin; begin < unit.end;) {
      const int64_t block = begin / job.width;
      const int64_t end = std::min(unit.end, (block + 1) * job.width);
      const Value* const grad = job.grad + p * grad_stride + block * job.columns;
      Panels<Number> right =
          in_place ? Panels<Number>{reinterpret_cast<const Number*>(grad), panel, grad_stride}
                   : pack(grad, grad_stride, 1, n, job.columns, scratch.matrix.data());
      for (int64_t c = 0; c < job.columns; c += panel, right.first += right.panel) {
        const int64_t columns = std::min(panel, stride - c);
        for (int64_t k = begin; k < end; k += kRows) {
          multiply_some<true>(
              std::min<int64_t>(kRows, end - k),
              Factors<Number>{rows, k - unit.begin, right.first, right.row, n},
              Place<Number>{out + (k - unit.begin) * stride + c, stride, columns, p > from});
        }
      }
      begin = end;
    }
  }
  return -1;
}

template <class Value>
GNNSYS_TARGET int64_t sum_outer_products(const Job<Value>& job, const OuterUnit& unit,
                                         Scratch<Value>& scratch) {
  using Number = Wide<Value>;
  constexpr int64_t panel = kPanel<Number>;
  const int64_t rows = unit.end - unit.begin;
  Value* const out = job.out + (unit.type * job.row_width() + unit.begin) * job.columns;
  if (job.ptr[unit.type] == job.ptr[unit.type + 1]) {
    std::memset(static_cast<void*>(out), 0,
                static_cast<size_t>(rows * job.columns) * sizeof(Value));
    return -1;
  }
  if (std::is_same_v<Value, Number> && fills_tiles<Number>(job.columns)) {
    return sum_chunks(job, unit, scratch, reinterpret_cast<Number*>(out), job.columns);
  }
  const int64_t rest = job.columns % panel;
  const int64_t stride = job.columns - rest + (rest > 0 ? tile_width<Number>(rest) : 0);
  scratch.sums.resize(static_cast<size_t>(rows * stride));
  const int64_t bad = sum_chunks(job, unit, scratch, scratch.sums.data(), stride);
  for (int64_t k = 0; k < rows; ++k) {
    const Number* const sums = scratch.sums.data() + k * stride;
    for (int64_t c = 0; c < job.columns; ++c) narrow(sums[c], out[k * job.columns + c]);
  }
  return bad;
}

}  // namespace GNNSYS_NAMESPACE
