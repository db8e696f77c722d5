// The gather loop: each_isa.inl compiles it for each instruction set. Every function carries the
// target, so that none of them can stand in for another instruction set's when the linker merges
// templates.

namespace GNNSYS_NAMESPACE {

// A row is prefetched `distance` rows ahead of its copy, by an id that is not checked yet: a
// prefetch of any address is harmless. The address is computed again for the copy, since keeping it
// in memory in between was measured to be up to a fifth slower.
template <class Copy, class Id>
GNNSYS_TARGET int64_t copy_rows(const Job& job, const Id* ids, int64_t begin, int64_t end) {
  const uintptr_t rows = reinterpret_cast<uintptr_t>(job.table.rows);
  const uint64_t num_rows = static_cast<uint64_t>(job.table.num_rows);
  const uint64_t stride = static_cast<uint64_t>(job.table.stride);
  const int64_t row_bytes = job.table.row_bytes;
  const int64_t reach = std::min(row_bytes, kPrefetchBytes);
  const int64_t distance = prefetch_distance(row_bytes);
  const Copy copy{row_bytes};
  char* to = job.out + begin * row_bytes;
  for (int64_t i = begin; i < end; ++i, to += row_bytes) {
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
  const int64_t bad = copy_rows<StreamCopy>(job, ids, begin, end);
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
  switch (job.table.row_bytes) {
    case 4:
      return copy_rows<FixedCopy<4>>(job, ids, begin, end);
    case 8:
      return copy_rows<FixedCopy<8>>(job, ids, begin, end);
    case 16:
      return copy_rows<FixedCopy<16>>(job, ids, begin, end);
    case 32:
      return copy_rows<FixedCopy<32>>(job, ids, begin, end);
  }
  if (job.table.row_bytes >= kLine) return copy_rows<LongCopy>(job, ids, begin, end);
  return copy_rows<AnyCopy>(job, ids, begin, end);
}

}  // namespace GNNSYS_NAMESPACE
