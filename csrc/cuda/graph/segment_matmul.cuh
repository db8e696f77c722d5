#pragma once

#include "arithmetic.cuh"

// Products of rows with matrices that differ by segment: the typed linear layers of relational
// models, and their derivatives by the matrices.
//
// R rows of x, M of the result, in segments of one type each; B blocks (heads), of K columns of x
// and N of the result. Each sum has one order, and each term of it is added by one fused
// multiplication and addition: results depend neither on the device nor on the launch.
namespace gnnsys::cuda {

constexpr int kSide = 64;   // rows of a product's tile
constexpr int kDepth = 16;  // terms of its sums that are in shared memory at a time
constexpr int kMicro = 4;   // rows, and columns, of it that one thread sums

// Rows first … last - 1 of the result, all of one type.
struct Stretch {
  i64 type, first, last;
};

// The rows that are multiplied. Value is float, double or BFloat, Id i32 or i64.
template <class Value, class Id>
struct IndexedRows {
  const Value* x;   // (R, B, K)
  i64 count;        // R
  const Id* index;  // (M) the row of x of each row of the result; null: the same
  i64 blocks;       // B
  i64 columns;      // K

  // Null, and a fault, where there is none.
  __device__ __forceinline__ const Value* find(i64 row, i64 block, u32* fault) const {
    const i64 of = index == nullptr ? row : static_cast<i64>(index[row]);
    if (of >= 0 && of < count) return x + (of * blocks + block) * columns;
    report(fault, kIndexOutOfRange, row);
    return nullptr;
  }
};

// kRows x kColumns values of a matrix, on their way from its rows to shared memory.
template <class Value, int kVector, int kThreads, int kRows, int kColumns>
struct Part {
  static constexpr int kWords = kColumns / kVector;  // of a row
  static constexpr int kEach = (kRows * kWords + kThreads - 1) / kThreads;
  Vector<Value, kVector> words[kEach];

  __device__ static int row_of(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads) / kWords;
  }
  __device__ static int column_of(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads) % kWords * kVector;
  }

  // From a column on, zeros from the column `end` on and where find(row) is null.
  template <class Find>
  __device__ __forceinline__ void load_rows(const Find& find, i64 column, i64 end) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      words[i] = {};
      const i64 at = column + column_of(i);
      if (row_of(i) >= kRows || at >= end) continue;
      const Value* row = find(row_of(i));
      if (row != nullptr) words[i] = load<kVector>(row + at);
    }
  }

  // kTurned: column after column.
  template <bool kTurned>
  __device__ __forceinline__ void store(Wide<Value>* to, int stride) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int row = row_of(i), column = column_of(i);
      if (row >= kRows) continue;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const int at = kTurned ? (column + v) * stride + row : row * stride + column + v;
        to[at] = widen(words[i].values[v]);
      }
    }
  }
};

// A tile of kSide x kColumns sums of products, kMicro x kMicro of them a thread's.
template <class Value, int kVector, int kColumns>
struct Product {
  using Sum = Wide<Value>;
  using Micro = Vector<Sum, kMicro>;
  static constexpr int kThreads = kSide * kColumns / (kMicro * kMicro);
  static constexpr int kStride = kSide + kMicro;  // threads that turn rows meet fewer others
  static constexpr int kTogether = kVector < kMicro ? kVector : kMicro;
  Sum sums[kMicro][kMicro] = {};

  __device__ static int row() {
    return static_cast<int>(threadIdx.x) / (kColumns / kMicro) * kMicro;
  }
  __device__ static int column() {
    return static_cast<int>(threadIdx.x) % (kColumns / kMicro) * kMicro;
  }

  // left: (kDepth, kStride), right: (kDepth, kColumns).
  __device__ __forceinline__ void add(const Sum* left, const Sum* right) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const Micro a = load<kMicro>(left + k * kStride + row());
      const Micro b = load<kMicro>(right + k * kColumns + column());
#pragma unroll
      for (int i = 0; i < kMicro; ++i) {
#pragma unroll
        for (int j = 0; j < kMicro; ++j) {
          sums[i][j] = multiply_add(a.values[i], b.values[j], sums[i][j]);
        }
      }
    }
  }

  // To rows of out, (rows, `end`) values of which the tile's begin at a column.
  template <class Out>
  __device__ __forceinline__ void store(Out* out, i64 stride, i64 rows, i64 first, i64 end) const {
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
#pragma unroll
      for (int j = 0; j < kMicro; j += kTogether) {
        const i64 at = first + column() + j;
        if (row() + i >= rows || at >= end) continue;
        Vector<Out, kTogether> some;
#pragma unroll
        for (int v = 0; v < kTogether; ++v) some.values[v] = Cast<Out, Sum>::of(sums[i][j + v]);
        *reinterpret_cast<Vector<Out, kTogether>*>(out + (row() + i) * stride + at) = some;
      }
    }
  }
};

// out (M, B, N): out[p] = x[index[p]] @ weight[type of p], terms in the order of x's columns.
// tiles: stretches of kSide rows at most. A block of Product::kThreads threads for a tile and
// kColumns columns of a block of the result. kVector divides K and N.
//
//   Bytes of a row: its id, and B K values read for each kColumns of N, B N written; of a tile: B K
//   N of weight, 24 more.
template <class Value, class Id, int kVector, int kColumns>
__global__ void segment_matmul(IndexedRows<Value, Id> rows, const Stretch* __restrict__ tiles,
                               i64 count, const Value* __restrict__ weight, i64 columns,
                               Value* __restrict__ out, u32* fault) {
  using Tile = Product<Value, kVector, kColumns>;
  GNNSYS_SHARED(typename Tile::Micro, left, kDepth * Tile::kStride / kMicro);
  GNNSYS_SHARED(typename Tile::Micro, right, kDepth * kColumns / kMicro);
  auto* const left_values = reinterpret_cast<Wide<Value>*>(left);
  auto* const right_values = reinterpret_cast<Wide<Value>*>(right);
  const i64 slices = (columns + kColumns - 1) / kColumns, depth = rows.columns;
  for (i64 i = blockIdx.x; i < count * rows.blocks * slices; i += gridDim.x) {
    const Stretch tile = tiles[i / (rows.blocks * slices)];
    const i64 block = i / slices % rows.blocks, first = i % slices * kColumns;
    const Value* own = weight + (tile.type * rows.blocks + block) * depth * columns;
    Part<Value, kVector, Tile::kThreads, kSide, kDepth> of_x;
    Part<Value, kVector, Tile::kThreads, kDepth, kColumns> of_weight;
    const auto load_from = [&](i64 k) {
      const auto row_of_x = [&](int row) -> const Value* {
        return tile.first + row < tile.last ? rows.find(tile.first + row, block, fault) : nullptr;
      };
      const auto row_of_weight = [&](int row) -> const Value* {
        return k + row < depth ? own + (k + row) * columns : nullptr;
      };
      of_x.load_rows(row_of_x, k, depth);
      of_weight.load_rows(row_of_weight, first, columns);
    };
    Tile product;
    load_from(0);
    for (i64 k = 0; k < depth; k += kDepth) {
      __syncthreads();  // all products before are added
      of_x.template store<true>(left_values, Tile::kStride);
      of_weight.template store<false>(right_values, kColumns);
      __syncthreads();
      load_from(k + kDepth);
      product.add(left_values, right_values);
    }
    product.store(out + (tile.first * rows.blocks + block) * columns, rows.blocks * columns,
                  tile.last - tile.first, first, columns);
  }
}

// out (count, B, K, N): of each stretch the sum of x[index[p]]^T grad[p] over its rows p, in their
// order: the derivative by a weight is the sum of its stretches' sums. grad: (M, B, N). A block of
// Product::kThreads threads for a stretch and kSide x kColumns of a block of the result. kVector
// divides K and N.
//
//   Bytes of a row: its id and B K values read for each kColumns of N, B N for each kSide of K; of
//   a stretch: B K N sums written, 24 read.
template <class Value, class Id, int kVector, int kColumns>
__global__ void sum_outer_products(IndexedRows<Value, Id> rows,
                                   const Stretch* __restrict__ stretches, i64 count,
                                   const Value* __restrict__ grad, i64 columns,
                                   Wide<Value>* __restrict__ out, u32* fault) {
  using Tile = Product<Value, kVector, kColumns>;
  GNNSYS_SHARED(typename Tile::Micro, left, kDepth * Tile::kStride / kMicro);
  GNNSYS_SHARED(typename Tile::Micro, right, kDepth * kColumns / kMicro);
  auto* const left_values = reinterpret_cast<Wide<Value>*>(left);
  auto* const right_values = reinterpret_cast<Wide<Value>*>(right);
  const i64 across = (columns + kColumns - 1) / kColumns, depth = rows.columns;
  const i64 down = (depth + kSide - 1) / kSide;
  for (i64 i = blockIdx.x; i < count * rows.blocks * down * across; i += gridDim.x) {
    const i64 column = i % across * kColumns, row = i / across % down * kSide;
    const i64 block = i / (across * down) % rows.blocks;
    const i64 number = i / (across * down * rows.blocks);
    const Stretch stretch = stretches[number];
    Part<Value, kVector, Tile::kThreads, kDepth, kSide> of_x;
    Part<Value, kVector, Tile::kThreads, kDepth, kColumns> of_grad;
    const auto load_from = [&](i64 first) {
      const auto row_of_x = [&](int p) -> const Value* {
        return first + p < stretch.last ? rows.find(first + p, block, fault) : nullptr;
      };
      const auto row_of_grad = [&](int p) -> const Value* {
        return first + p < stretch.last ? grad + ((first + p) * rows.blocks + block) * columns
                                        : nullptr;
      };
      of_x.load_rows(row_of_x, row, depth);
      of_grad.load_rows(row_of_grad, column, columns);
    };
    Tile product;
    load_from(stretch.first);
    for (i64 p = stretch.first; p < stretch.last; p += kDepth) {
      __syncthreads();  // all products before are added
      of_x.template store<false>(left_values, Tile::kStride);
      of_grad.template store<false>(right_values, kColumns);
      __syncthreads();
      load_from(p + kDepth);
      product.add(left_values, right_values);
    }
    product.store(out + ((number * rows.blocks + block) * depth + row) * columns, columns,
                  depth - row, column, columns);
  }
}

}  // namespace gnnsys::cuda
