#include "cuda/rows/gather_rows.cuh"

#include <vector>

#include "casts.hpp"
#include "simt/check.hpp"

namespace {

using namespace gnnsys::cuda;
using simt::draw;

struct Case {
  i64 rows, words, stride, n;
  std::size_t offset;  // of the table in its allocation, in bytes
};

template <class Word, int kLanes, class Id>
void check_copies(simt::Random& random, const Case& c, bool faulty) {
  const std::size_t row_bytes = c.words * sizeof(Word);
  simt::Exact<char> table(c.rows == 0 ? 0 : (c.rows - 1) * c.stride + row_bytes, c.offset);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<char>(random());
  simt::Exact<Id> ids(c.n);
  std::vector<char> expected(c.n * row_bytes);
  i64 bad = 0;
  for (i64 i = 0; i < c.n; ++i) {
    ids[i] = static_cast<Id>(draw(random, 0, c.rows - 1));
    if (c.rows == 0 || (faulty && i == c.n / 2))
      bad = ids[i] = static_cast<Id>(i % 2 ? -1 : c.rows);
    if (ids[i] < 0 || ids[i] >= c.rows) continue;
    std::memcpy(&expected[i * row_bytes], table.data() + ids[i] * c.stride, row_bytes);
  }
  simt::Exact<char> out(c.n * row_bytes);
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0});
  const simt::Dim3 grid{static_cast<unsigned>(draw(random, 1, 3))}, block{64};
  simt::launch(grid, block, gather_rows<Word, kLanes, Copy<Word>, Id>, table.data(), c.rows,
               c.stride, c.words, ids.data(), c.n, out.data(), fault.data());
  EXPECT(out.copy() == expected, "%lld rows of %zu bytes by ids of %zu, %d lanes",
         static_cast<long long>(c.n), row_bytes, sizeof(Id), kLanes);
  const bool found = c.n > 0 && (c.rows == 0 || faulty);
  EXPECT(fault[0] == (found ? kIdOutOfRange : 0u), "the fault");
  if (found && c.rows > 0) {
    const auto said = static_cast<i64>(u64{fault[1]} | u64{fault[2]} << 32);
    EXPECT(said == bad, "the id %lld, not %lld", static_cast<long long>(bad),
           static_cast<long long>(said));
  }
}

template <class Word, int kLanes>
void check_sizes(simt::Random& random, bool tiny) {
  const i64 most = kLanes > 0 ? kLanes : 33 + draw(random, 0, 300);
  for (i64 words : {most, kLanes > 0 ? (most + 1) / 2 : i64{33}}) {
    for (i64 n : tiny ? std::vector<i64>{3} : std::vector<i64>{0, 1, draw(random, 60, 70)}) {
      const i64 word = sizeof(Word);
      Case c{7, words, words * word + word * draw(random, 0, 2), n,
             static_cast<std::size_t>(word * draw(random, 0, 20))};
      check_copies<Word, kLanes, i64>(random, c, false);
      check_copies<Word, kLanes, i32>(random, c, n > 0);
      c.rows = 0;
      check_copies<Word, kLanes, i64>(random, c, false);
    }
  }
}

// Every half, and every bfloat16 and float nearby.
template <class Stored, class Delivered, class Word>
void check_casts(const std::vector<Stored>& values, int lanes) {
  const i64 per_row = lanes > 0 ? static_cast<i64>(sizeof(Word) / sizeof(Stored)) * 2 : 640;
  const i64 rows = static_cast<i64>(values.size()) / per_row;
  const i64 bytes = per_row * static_cast<i64>(sizeof(Stored));
  const i64 words = bytes / static_cast<i64>(sizeof(Word));
  const simt::Exact<Stored> table(values);
  simt::Exact<i64> ids(rows);
  for (i64 i = 0; i < rows; ++i) ids[i] = rows - 1 - i;
  simt::Exact<Delivered> out(rows * per_row);
  simt::Exact<u32> fault(std::vector<u32>{0, 0, 0});
  using Out = Decode<Word, Stored, Delivered>;
  simt::launch({2}, {64},
               lanes > 0 ? gather_rows<Word, 2, Out, i64> : gather_rows<Word, 0, Out, i64>,
               reinterpret_cast<const char*>(table.data()), rows, bytes, words, ids.data(), rows,
               reinterpret_cast<char*>(out.data()), fault.data());
  for (i64 i = 0; i < rows * per_row; ++i) {
    const i64 from = ids[i / per_row] * per_row + i % per_row;
    const Delivered expected = casts::cast<Delivered>(values[from]);
    EXPECT(std::memcmp(&out[i], &expected, sizeof(Delivered)) == 0, "element %lld",
           static_cast<long long>(from));
  }
}

void check_decoding(simt::Random& random, bool tiny) {
  const std::size_t count = tiny ? 2560 : 1 << 16;
  std::vector<Half> halves(count);
  std::vector<BFloat> bfloats(count);
  std::vector<float> floats(count);
  for (std::size_t i = 0; i < count; ++i) {
    halves[i].bits = bfloats[i].bits = static_cast<u16>(tiny ? random() : i);
    // Around every place where a cast to 16 bits rounds, among them ties.
    const u32 bits = static_cast<u32>(random() % 4 == 0 ? random() << 12 : random());
    std::memcpy(&floats[i], &bits, sizeof bits);
    if (floats[i] != floats[i]) floats[i] = 1;
  }
  check_casts<Half, float, uint4>(halves, 2);
  check_casts<Half, float, u16>(halves, 2);
  check_casts<Half, float, uint2>(halves, 0);
  check_casts<BFloat, float, uint4>(bfloats, 0);
  check_casts<float, Half, uint4>(floats, 2);
  check_casts<float, BFloat, uint4>(floats, 0);
  check_casts<i8, float, uint4>(std::vector<i8>(2560, static_cast<i8>(-7)), 0);
  check_casts<float, double, uint2>(floats, 2);
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  check_sizes<u8, 1>(random, tiny);
  check_sizes<u16, 2>(random, tiny);
  check_sizes<u32, 4>(random, tiny);
  check_sizes<uint2, 8>(random, tiny);
  check_sizes<uint4, 16>(random, tiny);
  check_sizes<uint4, 32>(random, tiny);
  check_sizes<u16, 0>(random, tiny);
  check_sizes<uint4, 0>(random, tiny);
  check_decoding(random, tiny);
}
