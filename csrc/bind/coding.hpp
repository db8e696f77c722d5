#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gnnsys/errors.hpp"
#include "gnnsys/rows/coding.hpp"

namespace gnnsys {

// A coding of rows with its scales.
class BoundCoding {
 public:
  BoundCoding(const std::string& stored, int64_t columns, std::vector<float> scales)
      : scales_(std::move(scales)), coding_{parse(stored), columns} {
    require(columns >= 0, "RowCoding: columns below 0");
    if (scales_.empty()) return;
    require(coding_.has_codes() && static_cast<int64_t>(scales_.size()) == columns,
            "RowCoding: scales are for each column of int8 or int4");
    coding_.scales = scales_.data();
  }
  BoundCoding(const BoundCoding&) = delete;
  BoundCoding& operator=(const BoundCoding&) = delete;

  const RowCoding& coding() const { return coding_; }

  // Throws std::invalid_argument where rows are of another size.
  const RowCoding& of_rows(int64_t row_bytes) const {
    require(row_bytes == coding_.row_bytes(), "RowCoding: rows of another size");
    return coding_;
  }

 private:
  static StoredType parse(const std::string& name) {
    if (name == "float16") return StoredType::float16;
    if (name == "bfloat16") return StoredType::bfloat16;
    if (name == "int8") return StoredType::int8;
    require(name == "int4", "RowCoding: stored is none of float16, bfloat16, int8, int4");
    return StoredType::int4;
  }

  const std::vector<float> scales_;
  RowCoding coding_;
};

}  // namespace gnnsys
