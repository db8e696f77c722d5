#pragma once

#include <cstdint>

namespace gnnsys {

enum class StoredType { float16, bfloat16, int8, int4 };

// How rows of float32 are stored in fewer bytes. Codes of int8 lie in [-127, 127], those of int4 in
// [-7, 7], two a byte, the lower half first; a value is its code times a scale. Without `scales`
// each row of codes begins with its own, a float32.
struct RowCoding {
  StoredType stored;
  int64_t columns;
  const float* scales = nullptr;  // (columns,) of int8 and int4, or null

  bool has_codes() const { return stored == StoredType::int8 || stored == StoredType::int4; }
  bool is_scaled_by_row() const { return has_codes() && scales == nullptr; }
  int64_t row_bytes() const;
};

// The greatest code: 127 or 7.
float greatest_code(StoredType stored);

// Writes (n, columns) rows as codes to (n, row_bytes) `out`: the nearest ones, ties to even, by
// scales of max |x| / greatest code. Returns -1, or the first of the n * columns values that is NaN
// or infinite; `out` is then partly written.
int64_t encode_rows(const RowCoding& coding, const float* rows, int64_t n, char* out);

}  // namespace gnnsys
