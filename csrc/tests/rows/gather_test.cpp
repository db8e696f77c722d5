// Gathered rows against one memcpy a row.
#include "gnnsys/rows/gather.hpp"

#include <cstring>
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

}  // namespace

void test_gather() {
  std::mt19937_64 random(4);
  ThreadPool pool(2);
  gather_copies_rows<int32_t>(random, pool);
  gather_copies_rows<int64_t>(random, pool);
}

}  // namespace gnnsys::test
