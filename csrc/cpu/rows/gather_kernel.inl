// The gather loop: each_isa.inl compiles it for each instruction set. Every function carries the
// target, so that none of them can stand in for another instruction set's when the linker merges
// templates.

namespace GNNSYS_NAMESPACE {

// A row is prefetched `distance` rows ahead of its copy, by an id that is not checked yet: a
// prefetch of any address is harmless. The address is computed again for the copy, since keeping it
// in memory in between was measured to be up to a fifth slower.
template <class Copy, class Id>
GNNSYS_TARGET int64_t copy_rows(const Job& job, const Copy copy, const Id* ids, int64_t begin,
                                int64_t end) {
  const uintptr_t rows = reinterpret_cast<uintptr_t>(job.table.rows);
  const uint64_t num_rows = static_cast<uint64_t>(job.table.num_rows);
  const uint64_t stride = static_cast<uint64_t>(job.table.stride);
  const int64_t row_bytes = job.table.row_bytes;
  const int64_t reach = std::min(row_bytes, kPrefetchBytes);
  const int64_t distance = prefetch_distance(row_bytes);
  char* to = job.out + begin * job.out_bytes;
  for (int64_t i = begin; i < end; ++i, to += job.out_bytes) {
    if (i + distance < end) {
      const uintptr_t next = rows + static_cast<uint64_t>(ids[i + distance]) * stride;
      for (int64_t b = 0; b < reach; b += kLine) {
        __builtin_prefetch(reinterpret_cast<const char*>(next + static_cast<uintptr_t>(b)), 0, 3);
      }
    }
    const uint64_t id = static_cast<uint64_t>(ids[i]);
    if (id >= num_rows) return i;
    copy(to, job.table.rows + id * stride);
  }
  return -1;
}

#if defined(__x86_64__)
// Rows of a whole number of lines into an output at a line boundary, written past the caches.
struct StreamCopy {
  int64_t bytes;
  GNNSYS_TARGET void operator()(char* to, const char* from) const {
    for (int64_t b = 0; b < bytes; b += sizeof(Vector)) stream(to + b, from + b);
  }
};

template <class Id>
GNNSYS_TARGET int64_t stream_rows(const Job& job, const Id* ids, int64_t begin, int64_t end) {
  const int64_t bad = copy_rows(job, StreamCopy{job.out_bytes}, ids, begin, end);
  _mm_sfence();
  return bad;
}
#endif

// The vector body of a row of at least 64 bytes, then one copy that ends where the row ends.
struct LongCopy {
  int64_t bytes;
  GNNSYS_TARGET void operator()(char* to, const char* from) const {
    const int64_t last = bytes - kLine;
    for (int64_t b = 0; b < last; b += kLine) std::memcpy(to + b, from + b, kLine);
    std::memcpy(to + last, from + last, kLine);
  }
};

template <class Id>
GNNSYS_TARGET int64_t plain_rows(const Job& job, const Id* ids, int64_t begin, int64_t end) {
  const int64_t bytes = job.out_bytes;
  switch (bytes) {
    case 4:
      return copy_rows(job, FixedCopy<4>{bytes}, ids, begin, end);
    case 8:
      return copy_rows(job, FixedCopy<8>{bytes}, ids, begin, end);
    case 16:
      return copy_rows(job, FixedCopy<16>{bytes}, ids, begin, end);
    case 32:
      return copy_rows(job, FixedCopy<32>{bytes}, ids, begin, end);
  }
  if (bytes >= kLine) return copy_rows(job, LongCopy{bytes}, ids, begin, end);
  return copy_rows(job, AnyCopy{bytes}, ids, begin, end);
}

#include "rows/decode_kernel.inl"

template <class Decode>
struct PlainDecode {
  Decode decode;
  int64_t columns;
  GNNSYS_TARGET void operator()(char* to, const char* from) const {
    decode(from, 0, columns, reinterpret_cast<float*>(to));
  }
};

#if defined(__x86_64__)
// Rows of whole lines, which are decoded in the L1 cache and written past it.
template <class Decode>
struct StreamDecode {
  Decode decode;
  int64_t columns;
  GNNSYS_TARGET void operator()(char* to, const char* from) const {
    constexpr int64_t kColumns = 512;
    alignas(kLine) float part[kColumns];
    for (int64_t first = 0; first < columns; first += kColumns) {
      const int64_t n = std::min(kColumns, columns - first);
      decode(from, first, n, part);
      const char* const decoded = reinterpret_cast<const char*>(part);
      for (int64_t b = 0; b < n * int64_t{sizeof(float)}; b += sizeof(Vector)) {
        stream(to + first * int64_t{sizeof(float)} + b, decoded + b);
      }
    }
  }
};
#endif

template <class Decode, class Id>
GNNSYS_TARGET int64_t decode_rows(const Job& job, Decode decode, const Id* ids, int64_t begin,
                                  int64_t end) {
  const int64_t columns = job.coding->columns;
#if defined(__x86_64__)
  if (job.past_caches) {
    const int64_t bad = copy_rows(job, StreamDecode<Decode>{decode, columns}, ids, begin, end);
    _mm_sfence();
    return bad;
  }
#endif
  return copy_rows(job, PlainDecode<Decode>{decode, columns}, ids, begin, end);
}

template <class Id>
GNNSYS_TARGET int64_t decoded_rows(const Job& job, const Id* ids, int64_t begin, int64_t end) {
  switch (job.coding->stored) {
    case StoredType::float16:
      return decode_rows(job, DecodeFloat16{}, ids, begin, end);
    case StoredType::bfloat16:
      return decode_rows(job, DecodeBFloat16{}, ids, begin, end);
    case StoredType::int8:
      return decode_rows(job, DecodeInt8{job.coding->scales}, ids, begin, end);
    default:
      return decode_rows(job, DecodeInt4{job.coding->scales}, ids, begin, end);
  }
}

}  // namespace GNNSYS_NAMESPACE
