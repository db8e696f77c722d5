#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gnnsys/isa.hpp"
#include "gnnsys/rows/coding.hpp"
#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// (rows, columns) int32 in C order.
struct Table32 {
  const int32_t* data;
  int64_t rows;

  const int32_t* begin() const { return data; }
  const int32_t* end(int columns) const { return data + columns * rows; }
};

// What one batch does to a cache; the arrays are those of gnnsys.cache.plan.BatchPlan.
struct PlanView {
  int64_t rows;        // positions of the batch
  Table32 hits;        // position, slot
  Table32 victim_in;   // position, cell, slot or -1
  Table32 fills;       // position, staging row, slot or -1
  Table32 copies;      // position, first position that holds the same id
  Table32 victim_out;  // slot, or -1 - staging row; cell
};

// The memory that a plan moves rows in.
struct CacheMemory {
  char* slots;  // (num_slots, row_bytes)
  int64_t num_slots;
  char* cells;  // (num_cells, row_bytes)
  int64_t num_cells;
  const char* staging;
  const int64_t* staged;  // (num_staged,) bytes from `staging` to each row
  int64_t num_staged;
  int64_t row_bytes;
};

// Carries a plan out. (1) The batch's rows go to `out` from slots, cells and staging, decoded where
// a coding is given, whose row_bytes are the memory's; (2) victims go to cells; (3) rows of the
// batch go to the slots planned for them. Rows that repeat in the batch are read again where the
// first of them lies.
//
// `scratch` is memory that is used again from call to call. Throws std::invalid_argument, before a
// row is moved, for a plan that names a position, slot, cell or staging row outside the memory, or
// leaves a position out.
void execute_plan(const PlanView& plan, const CacheMemory& memory, char* out,
                  const ThreadPool& pool, Isa isa, std::vector<int64_t>& scratch,
                  const RowCoding* coding = nullptr);

// Copies rows from address sources[i] to targets[i], in parallel over i; none may overlap.
void move_rows(std::span<const int64_t> sources, std::span<const int64_t> targets,
               int64_t row_bytes, const ThreadPool& pool);

}  // namespace gnnsys
