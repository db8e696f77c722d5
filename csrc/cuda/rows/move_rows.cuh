#pragma once

#include "../device.cuh"
#include "elements.cuh"

// How rows of any length are moved between areas of memory that the GPU reaches.
//
// A row is a number of words; a word is the widest access, up to 16 bytes, that the addresses and
// the row allow. Each thread has kFlight loads under way before it stores the first: the compiler,
// which would mix them, is not told that the areas lie apart.
namespace gnnsys::cuda {

// A pointer that is not null, to global memory, which the compiler may not see for itself.
template <class T>
__device__ __forceinline__ T* in_global(T* pointer) {
#ifdef __CUDACC__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

constexpr int kLine = 128;  // bytes of a memory request, which a long row's reads do not split

// What becomes of a word: it is copied.
template <class Word>
struct Copy {
  using Group = Word;                             // what a store writes
  static constexpr int kOutBytes = sizeof(Word);  // of a word
  static constexpr bool kSame = true;             // bytes delivered and stored
  __device__ static void put(char* out, Word word) { *reinterpret_cast<Word*>(out) = word; }
};

// Or each of its elements is cast.
template <class Word, class Stored, class Delivered>
struct Decode {
  static constexpr int kElements = sizeof(Word) / sizeof(Stored);
  static constexpr int kOutBytes = kElements * sizeof(Delivered);
  static constexpr bool kSame = false;
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

// Where a row is and where it goes: zeros go there where it is nowhere, and nothing is done where
// it goes nowhere.
struct Move {
  const char* from = nullptr;
  char* to = nullptr;
};

// Carries out find(i), a Move, for i in [0, n), of rows of at most kLanes words: kLanes threads a
// row, kFlight rows at a time. Blocks of a multiple of 32 threads.
template <class Word, int kLanes, class Out, class Find>
__device__ __forceinline__ void move_short_rows(i64 words, i64 n, Find&& find) {
  const int groups = static_cast<int>(blockDim.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const i64 group = static_cast<int>(threadIdx.x) / kLanes;
  const i64 tile = static_cast<i64>(groups) * kFlight;
  if (lane >= words) return;
  for (i64 first = blockIdx.x * tile; first < n; first += gridDim.x * tile) {
    Move move[kFlight];
    Word held[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      const i64 i = first + k * groups + group;
      move[k] = i < n ? find(i) : Move{};
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      held[k] = Word{};
      if (move[k].from != nullptr) {
        held[k] = reinterpret_cast<const Word*>(in_global(move[k].from))[lane];
      }
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      if (move[k].to != nullptr) Out::put(in_global(move[k].to) + lane * Out::kOutBytes, held[k]);
    }
  }
}

// The same of rows of more words than a warp has lanes: a warp a row. The lanes' reads begin at a
// multiple of kLine, so that no line is asked for twice.
template <class Word, class Out, class Find>
__device__ __forceinline__ void move_long_rows(i64 words, i64 n, Find&& find) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const i64 warps = thread_count() / kWarp;
  for (i64 i = thread_number() / kWarp; i < n; i += warps) {
    const Move move = find(i);
    if (move.to == nullptr) continue;
    char* const to = in_global(move.to);
    const i64 before = static_cast<i64>(reinterpret_cast<u64>(move.from) % kLine / sizeof(Word));
    for (i64 at = lane - before; at < words; at += kFlight * kWarp) {
      Word held[kFlight];
#pragma unroll
      for (int k = 0; k < kFlight; ++k) {
        const i64 word = at + k * kWarp;
        held[k] = Word{};
        if (move.from != nullptr && word >= 0 && word < words) {
          held[k] = reinterpret_cast<const Word*>(in_global(move.from))[word];
        }
      }
#pragma unroll
      for (int k = 0; k < kFlight; ++k) {
        const i64 word = at + k * kWarp;
        if (word >= 0 && word < words) Out::put(to + word * Out::kOutBytes, held[k]);
      }
    }
  }
}

// One of the two: kLanes is 0 for long rows.
template <class Word, int kLanes, class Out, class Find>
__device__ __forceinline__ void move_rows(i64 words, i64 n, Find&& find) {
  if constexpr (kLanes > 0) {
    move_short_rows<Word, kLanes, Out>(words, n, find);
  } else {
    move_long_rows<Word, Out>(words, n, find);
  }
}

}  // namespace gnnsys::cuda
