// The plain C loop that row gathers are measured against: what this machine's memory allows, with
// no bounds check, no id conversion, no pool. scripts/bench/gather.py builds and calls it:
//
//   cc -O3 -march=native -pthread -shared -fPIC -o libgather_reference.so gather_reference.c
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

enum {
  kLine = 64,
  kMaxThreads = 256,
  kPrefetchBytes = 1024,  // beyond them the hardware prefetcher follows a row by itself
  kFarRows = 16,          // rows ahead of the copy, for rows shorter than kPrefetchBytes
  kNearRows = 4,          // and for longer ones
};

typedef struct {
  const char* table;
  const void* ids;
  char* out;
  size_t begin, end;  // positions in ids
  size_t row_bytes;
  int wide;    // ids are int64, else uint32
  int stream;  // write past the caches
} Share;

// Always inlined with constant `wide` and `stream`, so that the loop holds neither decision.
#define INLINE static inline __attribute__((always_inline))

INLINE size_t id_at(const void* ids, size_t i, int wide) {
  return wide ? (size_t)((const int64_t*)ids)[i] : ((const uint32_t*)ids)[i];
}

INLINE void copy_row(char* to, const char* from, size_t row_bytes, int stream) {
#if defined(__AVX512F__)
  if (stream) {
    for (size_t b = 0; b < row_bytes; b += kLine) {
      _mm512_stream_si512((__m512i*)(to + b), _mm512_loadu_si512(from + b));
    }
    return;
  }
#endif
  (void)stream;
  memcpy(to, from, row_bytes);
}

INLINE void copy_rows(const Share* share, int wide, int stream) {
  const size_t row_bytes = share->row_bytes;
  const size_t ahead = row_bytes < kPrefetchBytes ? kFarRows : kNearRows;
  const size_t reach = row_bytes < kPrefetchBytes ? row_bytes : kPrefetchBytes;
  for (size_t i = share->begin; i < share->end; i++) {
    if (i + ahead < share->end) {
      const char* next = share->table + id_at(share->ids, i + ahead, wide) * row_bytes;
      for (size_t b = 0; b < reach; b += kLine) __builtin_prefetch(next + b, 0, 3);
    }
    const char* from = share->table + id_at(share->ids, i, wide) * row_bytes;
    copy_row(share->out + i * row_bytes, from, row_bytes, stream);
  }
#if defined(__AVX512F__)
  if (stream) _mm_sfence();
#endif
}

static void* run_share(void* argument) {
  const Share* share = argument;
  if (share->wide && share->stream) {
    copy_rows(share, 1, 1);
  } else if (share->wide) {
    copy_rows(share, 1, 0);
  } else if (share->stream) {
    copy_rows(share, 0, 1);
  } else {
    copy_rows(share, 0, 0);
  }
  return NULL;
}

// Whether rows of this size go to `out` by non-temporal stores.
int gather_reference_streams(const char* out, size_t row_bytes) {
#if defined(__AVX512F__)
  return row_bytes % kLine == 0 && (uintptr_t)out % kLine == 0;
#else
  (void)out, (void)row_bytes;
  return 0;
#endif
}

// out[i] = table[ids[i]] for n rows of row_bytes. `id_bytes` is 8 for int64 ids, 4 for uint32; the
// caller vouches for them. The first of `threads` shares runs on the calling thread. Returns 0 or
// an errno value.
int gather_reference(const char* table, char* out, const void* ids, int id_bytes, size_t n,
                     size_t row_bytes, int threads) {
  if (threads < 1 || threads > kMaxThreads || row_bytes == 0) return EINVAL;
  if (id_bytes != 4 && id_bytes != 8) return EINVAL;
  const int stream = gather_reference_streams(out, row_bytes);
  pthread_t helpers[kMaxThreads];
  Share shares[kMaxThreads];
  int started = 1;
  int status = 0;
  for (int t = 0; t < threads; t++) {
    const size_t begin = n * (size_t)t / (size_t)threads;
    const size_t end = n * (size_t)(t + 1) / (size_t)threads;
    shares[t] = (Share){table, ids, out, begin, end, row_bytes, id_bytes == 8, stream};
  }
  while (started < threads && status == 0) {
    status = pthread_create(&helpers[started], NULL, run_share, &shares[started]);
    if (status == 0) started++;
  }
  if (status == 0) run_share(&shares[0]);
  for (int t = 1; t < started; t++) pthread_join(helpers[t], NULL);
  return status;
}
