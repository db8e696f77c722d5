#pragma once

#include "../device.cuh"
#include "move_rows.cuh"

// Rows of a table in host memory that the GPU reaches, or in device memory, by id (Min et al.,
// "Large graph convolutional network training with GPU-oriented data communication architecture",
// VLDB 2021). The id of a row that is not there gives zeros and a fault.
namespace gnnsys::cuda {

struct Table {
  const char* data;
  i64 rows;
  i64 stride;  // bytes from row to row
  i64 words;   // of a row
};

// Where the row of the i-th id begins; null where there is none.
template <class Id>
__device__ __forceinline__ const char* find_row(const Table& table, const Id* ids, i64 i,
                                                u32* fault) {
  const i64 id = static_cast<i64>(ids[i]);
  if (id >= 0 && id < table.rows) return table.data + id * table.stride;
  report(fault, kIdOutOfRange, id);
  return nullptr;
}

// Rows of at most kLanes words. Each is read and written once, and its id read.
//   out: (n, words) words as Out writes them. Blocks of a multiple of 32 threads.
template <class Word, int kLanes, class Out, class Id>
__global__ void gather_short_rows(Table table, const Id* __restrict__ ids, i64 n,
                                  char* __restrict__ out, u32* fault) {
  move_short_rows<Word, kLanes, Out>(table.words, n, [&](i64 i) {
    return Move{find_row(table, ids, i, fault), out + i * table.words * Out::kOutBytes};
  });
}

// The same of rows of more words than a warp has lanes.
template <class Word, class Out, class Id>
__global__ void gather_long_rows(Table table, const Id* __restrict__ ids, i64 n,
                                 char* __restrict__ out, u32* fault) {
  move_long_rows<Word, Out>(table.words, n, [&](i64 i) {
    return Move{find_row(table, ids, i, fault), out + i * table.words * Out::kOutBytes};
  });
}

}  // namespace gnnsys::cuda
