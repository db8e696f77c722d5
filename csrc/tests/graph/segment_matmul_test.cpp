#include "gnnsys/graph/segment_matmul.hpp"

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

template <class T>
uintptr_t address(const std::vector<T>& values) {
  return reinterpret_cast<uintptr_t>(values.data());
}

struct Shape {
  int64_t types, blocks, width, columns;
};

// Row by row, in long double; every number of threads gives the same bits.
template <class Value>
void products_are_those_of_their_rows(std::mt19937_64& random, const char* dtype, Shape shape) {
  const auto [types, blocks, width, columns] = shape;
  const int64_t num_rows = 50;
  std::uniform_real_distribution<double> draw(-1, 1);
  const auto fill = [&](int64_t count) {
    std::vector<Value> values(count);
    for (Value& value : values) value = static_cast<Value>(draw(random));
    return values;
  };
  std::vector<int64_t> ptr{0}, index;
  for (int64_t type = 0; type < types; ++type) {
    for (int64_t rows = type % 3 == 1 ? 0 : random() % 150; rows > 0; --rows) {
      index.push_back(static_cast<int64_t>(random() % num_rows));
    }
    ptr.push_back(static_cast<int64_t>(index.size()));
  }
  const int64_t count = ptr.back(), size = width * columns;
  const std::vector<Value> x = fill(num_rows * blocks * width),
                           weight = fill(types * blocks * size),
                           grad = fill(count * blocks * columns);
  // Of matrices that lie row by row, and column by column.
  for (const bool turned : {false, true}) {
    const std::array<int64_t, 4> strides{blocks * size, size, turned ? 1 : columns,
                                         turned ? width : 1};
    std::vector<long double> products(count * blocks * columns), sums(types * blocks * size);
    for (int64_t type = 0; type < types; ++type) {
      for (int64_t p = ptr[type]; p < ptr[type + 1]; ++p) {
        for (int64_t b = 0; b < blocks; ++b) {
          for (int64_t k = 0; k < width; ++k) {
            const long double from = x[(index[p] * blocks + b) * width + k];
            for (int64_t c = 0; c < columns; ++c) {
              const int64_t at = (p * blocks + b) * columns + c;
              products[at] +=
                  from *
                  weight[type * strides[0] + b * strides[1] + k * strides[2] + c * strides[3]];
              sums[((type * blocks + b) * width + k) * columns + c] += from * grad[at];
            }
          }
        }
      }
    }
    const SegmentArrays segments{address(ptr), types, address(index)};
    const SegmentRows rows{dtype, address(x), num_rows, blocks, width, columns};
    const long double tolerance = sizeof(Value) == 4 ? 1e-5L : 1e-13L;
    for (const Isa isa : supported_isas()) {
      std::vector<Value> first_out, first_outer;
      for (const int threads : {1, 3}) {
        const ThreadPool pool(threads);
        std::vector<Value> out(products.size()), outer(sums.size());
        CHECK(segment_matmul(segments, rows, address(weight), strides, address(out), pool, isa) ==
              -1);
        CHECK(segment_outer(segments, rows, address(grad), address(outer), pool, isa) == -1);
        for (size_t i = 0; i < out.size(); ++i) {
          CHECK(std::abs(out[i] - products[i]) <= tolerance * 10);
        }
        for (size_t i = 0; i < outer.size(); ++i) {
          CHECK(std::abs(outer[i] - sums[i]) <= tolerance * 10);
        }
        if (threads == 1) {
          first_out = out;
          first_outer = outer;
        }
        CHECK(out == first_out);
        CHECK(outer == first_outer);
      }
    }
  }
}

void a_row_that_is_none_is_told() {
  const std::vector<int64_t> ptr{0, 2}, index{1, 2};
  const std::vector<float> x(2), weight(1), grad(2);
  std::vector<float> out(2);
  const SegmentArrays segments{address(ptr), 1, address(index)};
  const SegmentRows rows{"float32", address(x), 2, 1, 1, 1};
  for (const Isa isa : supported_isas()) {
    const ThreadPool pool(1);
    CHECK(segment_matmul(segments, rows, address(weight), {1, 1, 1, 1}, address(out), pool, isa) ==
          1);
    CHECK(segment_outer(segments, rows, address(grad), address(out), pool, isa) == 1);
  }
}

}  // namespace

void test_segment_matmul() {
  std::mt19937_64 random(7);
  for (const Shape& shape : {Shape{1, 1, 64, 64}, Shape{5, 1, 33, 37}, Shape{4, 3, 7, 8},
                             Shape{9, 2, 1, 1}, Shape{3, 1, 70, 80}}) {
    products_are_those_of_their_rows<float>(random, "float32", shape);
    products_are_those_of_their_rows<double>(random, "float64", shape);
  }
  a_row_that_is_none_is_told();
}

}  // namespace gnnsys::test
