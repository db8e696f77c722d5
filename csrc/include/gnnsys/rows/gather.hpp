#pragma once

#include <cstdint>

#include "gnnsys/isa.hpp"
#include "gnnsys/rows/coding.hpp"
#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// Rows of one table in host memory, or in a mapped file.
struct RowTable {
  const char* rows;
  int64_t num_rows;
  int64_t row_bytes;
  int64_t stride;  // bytes from a row to the next, at least row_bytes
};

// Copies row ids[i] to out + i * row_bytes for i in [0, n), in parallel over i; with a coding,
// whose row_bytes are the table's, row i of (n, columns) float32 is what it stands for.
//
// Id is int32_t or int64_t. Returns -1, or the least i whose id is outside the table; `out` is then
// partly written and nothing outside the table was read.
template <class Id>
int64_t gather_rows(const RowTable& table, const Id* ids, int64_t n, char* out,
                    const ThreadPool& pool, Isa isa, const RowCoding* coding = nullptr);

}  // namespace gnnsys
