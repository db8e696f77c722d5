#include "gnnsys/graph/segment_matmul.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "element_types.hpp"
#include "share_rows.hpp"
#include "wide_values.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPrefetchBytes = 1024;  // the hardware's own prefetcher follows from there
constexpr int64_t kChunk = 64;  // rows whose outer products are summed at a time, in the cache
constexpr int64_t kShareProducts = int64_t{1} << 19;  // fewer are not worth a thread
constexpr int64_t kSharesPerThread = 8;
constexpr int64_t kPieceWidth = 32;  // columns of x, below which a type is not shared out

// Rows with their element type.
template <class Value>
struct Job {
  const int64_t* ptr;
  int64_t num_types;
  const int64_t* index;
  const Value* x;
  int64_t num_rows, blocks, width, columns;
  const Value* weight;
  std::array<int64_t, 4> strides;
  const Value* grad;
  Value* out;
  const int64_t* target;  // the row of `out` to which each product is added; null: its own

  int64_t row_width() const { return blocks * width; }
  Value* out_row(int64_t p) const { return out + (target ? target[p] : p) * blocks * columns; }
  int64_t row_of(int64_t p) const { return index ? index[p] : p; }
  bool has_row(int64_t row) const {
    return static_cast<uint64_t>(row) < static_cast<uint64_t>(num_rows);
  }
};

// A matrix's columns in panels of as many as a tile has. Column c of panel i of row k lies at
// first[i * panel + k * row + c].
template <class Value>
struct Panels {
  const Value* first;
  int64_t panel, row;
};

// Copies that a thread keeps for the next ones.
template <class Value>
struct Scratch {
  std::vector<Wide<Value>> matrix, rows, sums;
  std::vector<Panels<Wide<Value>>> panels;
};

// Columns [begin, end) of x's rows of one type.
struct OuterUnit {
  int64_t type, begin, end;
};

// What a tile's sums are held in: kRows x kVectors vectors of registers.
#if defined(__x86_64__)
namespace generic {
constexpr int kVectorBytes = 16, kRows = 6;
}
namespace avx2 {
constexpr int kVectorBytes = 32, kRows = 6;
}
namespace avx512 {
constexpr int kVectorBytes = 64, kRows = 8;
}
#else
namespace generic {
constexpr int kVectorBytes = 16, kRows = 8;
}
#endif

#define GNNSYS_KERNEL "graph/segment_matmul_kernel.inl"
#include "each_isa.inl"

template <class Value>
int64_t multiply(const Job<Value>& job, const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  const auto kernel = GNNSYS_CHOOSE(isa, multiply_rows<Value>);
  const int64_t num_rows = job.ptr[job.num_types];
  const int64_t products = std::max<int64_t>(job.blocks * job.width * job.columns, 1);
  const int64_t grain = std::max(num_rows / (kSharesPerThread * threads.size()),
                                 (kShareProducts + products - 1) / products);
  std::atomic<int64_t> bad{-1};
  parallel_for(threads, num_rows, grain, [&](int64_t begin, int64_t end) {
    const int64_t found = kernel(job, begin, end);
    if (found >= 0) bad.store(found, std::memory_order_relaxed);
  });
  return bad.load();
}

// The first row whose index is not in [0, num_sums), or less than that of the row before; or -1.
template <class Value>
int64_t find_descent(const Job<Value>& job, int64_t num_sums) {
  for (int64_t type = 0; type < job.num_types; ++type) {
    int64_t least = 0;
    for (int64_t p = job.ptr[type]; p < job.ptr[type + 1]; ++p) {
      if (job.target[p] < least || job.target[p] >= num_sums) return p;
      least = job.target[p];
    }
  }
  return -1;
}

template <class Value>
int64_t multiply_and_sum(Job<Value> job, int64_t num_sums, const ThreadPool& threads,
                         [[maybe_unused]] Isa isa) {
  job.target = std::exchange(job.index, nullptr);
  const int64_t bad = find_descent(job, num_sums);
  if (bad >= 0) return bad;
  // Each thread has rows of its own, to which it adds in the order of the types.
  const auto kernel = GNNSYS_CHOOSE(isa, sum_rows<Value>);
  const int64_t shares = threads.size() > 1 ? kSharesPerThread * threads.size() : 1;
  parallel_for(threads, num_sums, std::max<int64_t>((num_sums + shares - 1) / shares, 1),
               [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  return -1;
}

template <class Value>
int64_t sum_outer(const Job<Value>& job, const ThreadPool& threads, [[maybe_unused]] Isa isa) {
  const auto kernel = GNNSYS_CHOOSE(isa, sum_outer_products<Value>);
  // Shared out by columns of x, too: no sum is then made by two threads.
  const int64_t most = threads.size() > 1 ? 2 * threads.size() : 1;
  const int64_t pieces = std::clamp<int64_t>(job.row_width() / kPieceWidth, 1, most);
  const auto unit = [&](int64_t number) {
    const int64_t piece = number % pieces;
    return OuterUnit{number / pieces, job.row_width() * piece / pieces,
                     job.row_width() * (piece + 1) / pieces};
  };
  std::vector<int64_t> rows_before{0};  // of each unit
  rows_before.reserve(static_cast<size_t>(job.num_types * pieces) + 1);
  for (int64_t type = 0; type < job.num_types; ++type) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      rows_before.push_back(rows_before.back() + job.ptr[type + 1] - job.ptr[type]);
    }
  }
  std::atomic<int64_t> bad{-1};
  const int64_t row_bytes = job.row_width() * job.columns / pieces + kLine;
  share_rows(threads, rows_before.data(), job.num_types * pieces, row_bytes,
             [&](int64_t begin, int64_t end) {
               Scratch<Value> scratch;
               for (int64_t number = begin; number < end; ++number) {
                 const int64_t found = kernel(job, unit(number), scratch);
                 if (found >= 0) bad.store(found, std::memory_order_relaxed);
               }
             });
  return bad.load();
}

// run(job) for the element type that the arrays have.
template <class Run>
int64_t dispatch(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t weight,
                 const std::array<int64_t, 4>& strides, uintptr_t grad, uintptr_t out,
                 const Run& run) {
  return with_values(rows.dtype, "products", [&]<class Value>(Value) {
    return run(Job<Value>{at<const int64_t>(segments.ptr), segments.num_types,
                          at<const int64_t>(segments.index), at<const Value>(rows.x), rows.num_rows,
                          rows.blocks, rows.width, rows.columns, at<const Value>(weight), strides,
                          at<const Value>(grad), at<Value>(out), nullptr});
  });
}

}  // namespace

int64_t segment_matmul(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t weight,
                       const std::array<int64_t, 4>& strides, uintptr_t out,
                       const ThreadPool& threads, Isa isa) {
  return dispatch(segments, rows, weight, strides, 0, out,
                  [&](const auto& job) { return multiply(job, threads, isa); });
}

int64_t segment_matmul_sum(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t weight,
                           const std::array<int64_t, 4>& strides, int64_t num_sums, uintptr_t out,
                           const ThreadPool& threads, Isa isa) {
  return dispatch(segments, rows, weight, strides, 0, out,
                  [&](const auto& job) { return multiply_and_sum(job, num_sums, threads, isa); });
}

int64_t segment_outer(const SegmentArrays& segments, const SegmentRows& rows, uintptr_t grad,
                      uintptr_t out, const ThreadPool& threads, Isa isa) {
  return dispatch(segments, rows, 0, {}, grad, out,
                  [&](const auto& job) { return sum_outer(job, threads, isa); });
}

}  // namespace gnnsys
