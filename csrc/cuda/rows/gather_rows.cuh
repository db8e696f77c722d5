#pragma once

#include "../device.cuh"
#include "elements.cuh"

// Rows of a table in host memory that the GPU reaches, or in device memory, by id (Min et al.,
// "Large graph convolutional network training with GPU-oriented data communication architecture",
// VLDB 2021).
//
// A row is a number of words; a word is the widest access, up to 16 bytes, that the addresses and
// the row allow. Each thread has kFlight loads under way before it stores the first: the compiler,
// which would mix them, is not told that `data` and `out` lie apart. The id of a row that is not
// there gives zeros and a fault.
namespace gnnsys::cuda {

constexpr int kLine = 128;  // bytes of a memory request, which a long row's reads do not split

// What becomes of a word: it is copied.
template <class Word>
struct Copy {
  static constexpr int kOutBytes = sizeof(Word);  // of a word
  __device__ static void put(char* out, Word word) { *reinterpret_cast<Word*>(out) = word; }
};

// Or each of its elements is cast.
template <class Word, class Stored, class Delivered>
struct Decode {
  static constexpr int kElements = sizeof(Word) / sizeof(Stored);
  static constexpr int kOutBytes = kElements * sizeof(Delivered);
  static constexpr int kWidth = kOutBytes < 16 ? kOutBytes : 16;  // of a store
  static constexpr int kAtATime = kWidth / static_cast<int>(sizeof(Delivered));

  struct alignas(kWidth) Group {
    Delivered values[kAtATime];
  };
  struct alignas(sizeof(Word)) Elements {
    Stored values[kElements];
  };

  __device__ static void put(char* out, Word word) {
    const Elements elements = __builtin_bit_cast(Elements, word);
#pragma unroll
    for (int first = 0; first < kElements; first += kAtATime) {
      Group group;
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) {
        group.values[i] = Cast<Delivered, Stored>::of(elements.values[first + i]);
      }
      reinterpret_cast<Group*>(out)[first / kAtATime] = group;
    }
  }
};

__device__ __forceinline__ bool is_row(i64 id, i64 rows) {
  return static_cast<u64>(id) < static_cast<u64>(rows);
}

// Rows of at most kLanes words: kLanes threads a row, kFlight rows at a time.
//   data: `rows` rows of `words` words each, `stride` bytes apart. ids: (n).
//   out: (n, words) words as Out writes them. Blocks of a multiple of 32 threads.
// Reads a row and an id, writes a row.
template <class Word, int kLanes, class Out, class Id>
__global__ void gather_short_rows(const char* data, i64 rows, i64 stride, i64 words,
                                  const Id* __restrict__ ids, i64 n, char* out, u32* fault) {
  const int groups = static_cast<int>(blockDim.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const i64 group = static_cast<int>(threadIdx.x) / kLanes;
  const i64 tile = static_cast<i64>(groups) * kFlight;
  if (lane >= words) return;
  for (i64 first = blockIdx.x * tile + group; first < n; first += gridDim.x * tile) {
    i64 id[kFlight];
    bool there[kFlight];
    Word held[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = first + k * groups;
      id[k] = i < n ? static_cast<i64>(ids[i]) : 0;
      there[k] = i < n && is_row(id[k], rows);
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      held[k] = Word{};
      if (there[k]) held[k] = reinterpret_cast<const Word*>(data + id[k] * stride)[lane];
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = first + k * groups;
      if (i < n) Out::put(out + (i * words + lane) * Out::kOutBytes, held[k]);
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      if (first + k * groups < n && !there[k]) report(fault, kIdOutOfRange, id[k]);
    }
  }
}

// Rows of more words than a warp has lanes: a warp a row. The lanes' reads begin at a multiple of
// kLine, so that no line is asked for twice. Arguments and traffic as above.
template <class Word, class Out, class Id>
__global__ void gather_long_rows(const char* data, i64 rows, i64 stride, i64 words,
                                 const Id* __restrict__ ids, i64 n, char* out, u32* fault) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const i64 warps = thread_count() / kWarp;
  for (i64 i = thread_number() / kWarp; i < n; i += warps) {
    const i64 id = static_cast<i64>(ids[i]);
    const bool there = is_row(id, rows);
    const char* row = data + (there ? id * stride : 0);
    char* to = out + i * words * Out::kOutBytes;
    const i64 before = static_cast<i64>(reinterpret_cast<u64>(row) % kLine / sizeof(Word));
    for (i64 at = lane - before; at < words; at += kFlight * kWarp) {
      Word held[kFlight];
#pragma unroll
      for (int k = 0; k < kFlight; ++k) {
        const i64 word = at + k * kWarp;
        held[k] = Word{};
        if (there && word >= 0 && word < words) {
          held[k] = reinterpret_cast<const Word*>(row)[word];
        }
      }
#pragma unroll
      for (int k = 0; k < kFlight; ++k) {
        const i64 word = at + k * kWarp;
        if (word >= 0 && word < words) Out::put(to + word * Out::kOutBytes, held[k]);
      }
    }
    if (!there) report(fault, kIdOutOfRange, id);
  }
}

}  // namespace gnnsys::cuda
