#include "gnnsys/rows/keyed_dropout.hpp"

#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

#include "draws.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kWords = int64_t{1} << 13;  // drawn at a time: they stay in the nearest cache

// Values are cleared as bits: a branch would be mispredicted about half of the time.
template <class Value>
void apply(const uint32_t* __restrict words, uint32_t least, int64_t width, Value scale,
           const Value* x, Value* out) {
  using Bits = std::conditional_t<sizeof(Value) == 4, uint32_t, uint64_t>;
  for (int64_t c = 0; c < width; ++c) {
    const Bits kept = Bits{0} - static_cast<Bits>(words[c] >= least);
    out[c] = std::bit_cast<Value>(std::bit_cast<Bits>(x[c] * scale) & kept);
  }
}

}  // namespace

template <class Value>
void keyed_dropout(const KeyedDropout& dropout, const int64_t* vertices, int64_t rows,
                   int64_t width, Value scale, const Value* x, Value* out, Isa isa) {
  const PhiloxNodes draw = choose_philox_nodes(isa);
  const int64_t blocks = (width + kDrawsPerBlock - 1) / kDrawsPerBlock;
  const int64_t stride = blocks * kDrawsPerBlock;
  if (rows == 0 || width == 0) return;
  const int64_t step = std::max<int64_t>(8, kWords / stride);
  std::vector<uint32_t> words(std::min(step, rows) * stride);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t count = std::min(step, rows - begin);
    draw(dropout.key, vertices + begin, nullptr, count, static_cast<uint32_t>(blocks),
         words.data());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (begin + i) * width;
      apply(words.data() + i * stride, dropout.least, width, scale, x + row, out + row);
    }
  }
}

template void keyed_dropout<float>(const KeyedDropout&, const int64_t*, int64_t, int64_t, float,
                                   const float*, float*, Isa);
template void keyed_dropout<double>(const KeyedDropout&, const int64_t*, int64_t, int64_t, double,
                                    const double*, double*, Isa);

}  // namespace gnnsys
