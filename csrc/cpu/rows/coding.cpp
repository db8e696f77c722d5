#include "gnnsys/rows/coding.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace gnnsys {
namespace {

// To the nearest whole number, ties to even, of |x| below 2^22.
float round_to_even(float x) {
  constexpr float kHalfUlpIsHalf = 12582912.0f;  // 1.5 * 2^23
  return (x + kHalfUlpIsHalf) - kHalfUlpIsHalf;
}

int code_of(float x, float scale, float greatest) {
  if (scale == 0) return 0;
  return static_cast<int>(round_to_even(std::clamp(x / scale, -greatest, greatest)));
}

}  // namespace

int64_t RowCoding::row_bytes() const {
  const int64_t scale = is_scaled_by_row() ? static_cast<int64_t>(sizeof(float)) : 0;
  switch (stored) {
    case StoredType::int8:
      return scale + columns;
    case StoredType::int4:
      return scale + (columns + 1) / 2;
    default:
      return 2 * columns;
  }
}

float greatest_code(StoredType stored) { return stored == StoredType::int4 ? 7.0f : 127.0f; }

int64_t encode_rows(const RowCoding& coding, const float* rows, int64_t n, char* out) {
  const float greatest = greatest_code(coding.stored);
  const int64_t columns = coding.columns, row_bytes = coding.row_bytes();
  for (int64_t row = 0; row < n; ++row, rows += columns, out += row_bytes) {
    float most = 0;
    for (int64_t i = 0; i < columns; ++i) {
      if (!std::isfinite(rows[i])) return row * columns + i;
      most = std::max(most, std::fabs(rows[i]));
    }
    const float own = most / greatest;
    char* codes = out;
    if (coding.is_scaled_by_row()) {
      std::memcpy(out, &own, sizeof own);
      codes += sizeof own;
    }
    const auto code = [&](int64_t i) {
      return code_of(rows[i], coding.scales ? coding.scales[i] : own, greatest);
    };
    if (coding.stored == StoredType::int8) {
      for (int64_t i = 0; i < columns; ++i) codes[i] = static_cast<char>(code(i));
    } else {
      for (int64_t i = 0; i < columns; i += 2) {
        const int high = i + 1 < columns ? code(i + 1) : 0;
        codes[i / 2] = static_cast<char>((code(i) & 15) | (high & 15) << 4);
      }
    }
  }
  return -1;
}

}  // namespace gnnsys
