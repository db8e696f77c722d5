#include "gnnsys/rows/gather.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gnnsys {
namespace {

// Outputs larger than this leave the caches before they are read again, so they are written past
// them: that saves reading each line of the output in before it is overwritten.
constexpr int64_t kStreamBytes = int64_t{4} << 20;
constexpr int64_t kLine = 64;
// The hardware prefetcher follows a row by itself once its first lines are on their way.
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kShareBytes = int64_t{256} << 10;  // a smaller share is not worth a thread
// Shares for each thread, so that one whose core is busy with other work does not hold all up.
constexpr int64_t kSharesPerThread = 8;

constexpr int64_t prefetch_distance(int64_t row_bytes) { return row_bytes < 1024 ? 16 : 4; }

struct Job {
  const RowTable& table;
  const RowCoding* coding;  // null where rows are copied
  char* out;
  int64_t out_bytes;  // of a row
  bool past_caches;   // whether rows are written so
};

struct AnyCopy {
  int64_t bytes;
  void operator()(char* to, const char* from) const {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
};

template <int Bytes>
struct FixedCopy {
  int64_t bytes;
  void operator()(char* to, const char* from) const { std::memcpy(to, from, Bytes); }
};

#if defined(__x86_64__)
// What writes a vector past the caches.
namespace generic {
using Vector = __m128i;
[[gnu::target("sse2"), gnu::always_inline]] inline void stream(char* to, const char* from) {
  _mm_stream_si128(reinterpret_cast<Vector*>(to),
                   _mm_loadu_si128(reinterpret_cast<const Vector*>(from)));
}
}  // namespace generic

namespace avx2 {
using Vector = __m256i;
[[gnu::target("avx2"), gnu::always_inline]] inline void stream(char* to, const char* from) {
  _mm256_stream_si256(reinterpret_cast<Vector*>(to),
                      _mm256_loadu_si256(reinterpret_cast<const Vector*>(from)));
}
}  // namespace avx2

namespace avx512 {
using Vector = __m512i;
[[gnu::target("avx512f"), gnu::always_inline]] inline void stream(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<Vector*>(to), _mm512_loadu_si512(from));
}
}  // namespace avx512
#endif

#define GNNSYS_KERNEL "rows/gather_kernel.inl"
#include "each_isa.inl"

template <class Id>
using Kernel = int64_t (*)(const Job&, const Id*, int64_t, int64_t);

template <class Id>
Kernel<Id> choose_kernel(const Job& job, Isa isa) {
  if (job.coding != nullptr) return GNNSYS_CHOOSE(isa, decoded_rows<Id>);
#if defined(__x86_64__)
  if (job.past_caches) return GNNSYS_CHOOSE(isa, stream_rows<Id>);
#endif
  return GNNSYS_CHOOSE(isa, plain_rows<Id>);
}

}  // namespace

template <class Id>
int64_t gather_rows(const RowTable& table, const Id* ids, int64_t n, char* out,
                    const ThreadPool& pool, Isa isa, const RowCoding* coding) {
  const int64_t out_bytes =
      coding ? coding->columns * static_cast<int64_t>(sizeof(float)) : table.row_bytes;
  const bool lines = out_bytes % kLine == 0 && reinterpret_cast<uintptr_t>(out) % kLine == 0;
  const Job job{table, coding, out, out_bytes, lines && n * out_bytes >= kStreamBytes};
  const Kernel<Id> kernel = choose_kernel<Id>(job, isa);
  const int64_t cost = n * (out_bytes + kLine);
  const int64_t pieces = std::clamp<int64_t>(cost / kShareBytes, 1, kSharesPerThread * pool.size());
  const int64_t grain = std::max<int64_t>(1, (n + pieces - 1) / pieces);
  std::atomic<int64_t> first_bad{n};
  parallel_for(pool, n, grain, [&](int64_t begin, int64_t end) {
    const int64_t bad = kernel(job, ids, begin, end);
    if (bad < 0) return;
    int64_t known = first_bad.load(std::memory_order_relaxed);
    while (bad < known && !first_bad.compare_exchange_weak(known, bad)) {
    }
  });
  const int64_t bad = first_bad.load();
  return bad == n ? -1 : bad;
}

template int64_t gather_rows<int32_t>(const RowTable&, const int32_t*, int64_t, char*,
                                      const ThreadPool&, Isa, const RowCoding*);
template int64_t gather_rows<int64_t>(const RowTable&, const int64_t*, int64_t, char*,
                                      const ThreadPool&, Isa, const RowCoding*);

}  // namespace gnnsys
