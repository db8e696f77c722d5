// Gathered rows against one memcpy a row.
#include "gnnsys/rows/gather.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

template <class Id>
void gather_copies_rows(std::mt19937_64& random, ThreadPool& pool) {
  for (int64_t row_bytes : {1, 3, 4, 16, 64, 100, 256, 1028}) {
    for (int64_t rows : {1, 7, 300}) {
      const int64_t stride = row_bytes + static_cast<int64_t>(random() % 2) * 12;
      std::vector<char> table((rows - 1) * stride + row_bytes);
      for (char& byte : table) byte = static_cast<char>(random());
      std::vector<Id> ids(1000);
      for (Id& id : ids) id = static_cast<Id>(random() % rows);
      for (Isa isa : supported_isas()) {
        std::vector<char> out(ids.size() * row_bytes);
        const RowTable view{table.data(), rows, row_bytes, stride};
        const auto n = static_cast<int64_t>(ids.size());
        CHECK(gather_rows(view, ids.data(), n, out.data(), pool, isa) == -1);
        for (int64_t i = 0; i < n; ++i) {
          CHECK(!std::memcmp(&out[i * row_bytes], &table[ids[i] * stride], row_bytes));
        }
        std::vector<Id> bad = ids;
        bad[500] = static_cast<Id>(rows);
        bad[900] = -1;
        CHECK(gather_rows(view, bad.data(), n, out.data(), pool, isa) == 500);
        CHECK(gather_rows(view, ids.data(), 0, out.data(), pool, isa) == -1);
      }
    }
  }
}

// Rows are decoded to what one code times its scale is, by every instruction set; outputs of whole
// lines and of some MiB are written past the caches.
void gather_decodes_rows(std::mt19937_64& random, ThreadPool& pool) {
  for (StoredType stored : {StoredType::int8, StoredType::int4}) {
    for (int64_t columns : {1, 7, 64, 528}) {
      const std::vector<float> scales(static_cast<std::size_t>(columns), 0.25f);
      for (const float* of_columns : {static_cast<const float*>(nullptr), scales.data()}) {
        const RowCoding coding{stored, columns, of_columns};
        std::vector<float> rows(static_cast<std::size_t>(9 * columns));
        const auto most = static_cast<int>(greatest_code(stored));
        for (float& value : rows) value = static_cast<float>(static_cast<int>(random() % 9) - 4);
        for (int64_t row = 0; row < 9; ++row) rows[row * columns] = static_cast<float>(most) / 4;
        if (stored == StoredType::int4) {
          for (float& value : rows) value = std::min(value, static_cast<float>(most) / 4);
          for (float& value : rows) value = std::max(value, -static_cast<float>(most) / 4);
        }
        std::vector<char> table(static_cast<std::size_t>(9 * coding.row_bytes()));
        CHECK(encode_rows(coding, rows.data(), 9, table.data()) == -1);
        const RowTable view{table.data(), 9, coding.row_bytes(), coding.row_bytes()};
        std::vector<int64_t> ids(2100);
        for (int64_t& id : ids) id = static_cast<int64_t>(random() % 9);
        std::vector<float> out(ids.size() * static_cast<std::size_t>(columns) + 16);
        auto* first = reinterpret_cast<char*>(out.data());
        first += (64 - reinterpret_cast<uintptr_t>(first) % 64) % 64;
        const auto n = static_cast<int64_t>(ids.size());
        for (Isa isa : supported_isas()) {
          CHECK(gather_rows(view, ids.data(), n, first, pool, isa, &coding) == -1);
          const auto* found = reinterpret_cast<const float*>(first);
          for (int64_t i = 0; i < n; ++i) {
            for (int64_t k = 0; k < columns; ++k) {
              // Multiples of the scale come back, others as the nearest multiple.
              const float given = rows[ids[i] * columns + k];
              CHECK(std::abs(found[i * columns + k] - given) <= 0.125f);
            }
          }
        }
        rows[columns] = std::numeric_limits<float>::quiet_NaN();
        CHECK(encode_rows(coding, rows.data(), 9, table.data()) == columns);
      }
    }
  }
}

}  // namespace

void test_gather() {
  std::mt19937_64 random(4);
  ThreadPool pool(2);
  gather_copies_rows<int32_t>(random, pool);
  gather_copies_rows<int64_t>(random, pool);
  gather_decodes_rows(random, pool);
}

}  // namespace gnnsys::test
