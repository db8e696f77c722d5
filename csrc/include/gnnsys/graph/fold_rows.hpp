#pragma once

#include <cstdint>

#include "gnnsys/isa.hpp"
#include "gnnsys/thread_pool.hpp"

// Sums over neighbours whose rows come piece by piece: message passing in passes over a file.
//
// T targets, E edges, W columns.
namespace gnnsys {

enum class Fold { sum, max, min };

// Targets and how far their neighbours' rows have come. Id is int32_t or int64_t.
template <class Id>
struct FoldedTargets {
  const int64_t* indptr;  // (T + 1) where the neighbours of each lie in `source`
  int64_t count;          // T
  const Id* source;       // numbers of rows, those of a target ascending
  int64_t first;          // the first target's own row, which is left out, as the others' own
                          // are; negative: own rows count as others do
  int64_t* next;          // (T) the first edge of each whose row has not come yet
};

// Folds rows (n, W), which are those of number `first` and on, into out (T, W): adds them to the
// targets that have an edge from them, or keeps the greater or the smaller. Each target takes its
// rows in the order of its edges, so that results depend neither on the pieces in which rows come
// nor on the threads or the instruction set.
//
// Returns -1, or an edge whose row should have come before: the sources do not ascend, or a piece
// was left out.
template <class Value, class Id>
int64_t fold_rows(const FoldedTargets<Id>& targets, const Value* rows, int64_t first, int64_t n,
                  int64_t width, Fold how, Value* out, const ThreadPool& pool, Isa isa);

}  // namespace gnnsys
