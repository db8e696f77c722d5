#pragma once

#include "../device.cuh"
#include "move_rows.cuh"

// Rows of a table in host memory that the GPU reaches, or in device memory, by id (Min et al.,
// "Large graph convolutional network training with GPU-oriented data communication architecture",
// VLDB 2021). The id of a row that is not there gives zeros and a fault.
namespace gnnsys::cuda {

// Finds rows by id; remembers an id of no row, since to report it at once would hold loads up.
template <class Word, class Out, class Id>
struct RowsById {
  const char* data;
  i64 rows, stride, words;
  const Id* ids;
  char* out;
  i64 bad = 0;
  bool found_bad = false;

  __device__ __forceinline__ Move operator()(i64 i) {
    const i64 id = static_cast<i64>(ids[i]);
    const bool there = static_cast<u64>(id) < static_cast<u64>(rows);
    if (!there) bad = id;
    found_bad |= !there;
    return {there ? data + id * stride : nullptr, out + i * words * Out::kOutBytes};
  }
};

// Rows of at most kLanes words, of any number where kLanes is 0. Each is read and written once, and
// its id read.
//   data: `rows` rows of `words` words each, `stride` bytes apart. ids: (n,).
//   out: (n, words) words as Out writes them. Blocks of a multiple of 32 threads.
template <class Word, int kLanes, class Out, class Id>
__global__ void gather_rows(const char* data, i64 rows, i64 stride, i64 words,
                            const Id* __restrict__ ids, i64 n, char* out, u32* fault) {
  RowsById<Word, Out, Id> find{data, rows, stride, words, ids, out};
  move_rows<Word, kLanes, Out>(words, n, find);
  if (find.found_bad) report(fault, kIdOutOfRange, find.bad);
}

}  // namespace gnnsys::cuda
