// The gather loop, compiled once for each instruction set: gather.cpp includes this with
// GNNSYS_NAMESPACE and GNNSYS_TARGET set. Every function carries the target, so that none of them
// can stand in for another instruction set's when the linker merges templates.

namespace GNNSYS_NAMESPACE {

GNNSYS_TARGET inline const char* prefetched_row(const Job& job, int64_t id) {
  const char* row = job.table.rows + id * job.table.stride;
  const int64_t reach = std::min(job.table.row_bytes, kPrefetchBytes);
  for (int64_t b = 0; b < reach; b += kLine) __builtin_prefetch(row + b, 0, 3);
  return row;
}

// Ids are resolved `distance` rows ahead of the copy: there each is checked and its row prefetched.
template <class Copy, class Id>
GNNSYS_TARGET int64_t copy_rows(const Job& job, const Id* ids, int64_t begin, int64_t end) {
  const Copy copy{job.table.row_bytes};
  const int64_t num_rows = job.table.num_rows;
  const int64_t distance = prefetch_distance(job.table.row_bytes);
  const char* ahead[kMaxDistance];
  char* to = job.out + begin * job.table.row_bytes;
  for (int64_t i = begin; i < end + distance; ++i) {
    const int64_t done = i - distance;
    if (done >= begin) {
      copy(to, ahead[done % kMaxDistance]);
      to += job.table.row_bytes;
    }
    if (i < end) {
      const int64_t id = ids[i];
      if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(num_rows)) return i;
      ahead[i % kMaxDistance] = prefetched_row(job, id);
    }
  }
  return -1;
}

#if defined(__x86_64__)
// Rows of a whole number of lines into an output at a line boundary, written past the caches.
struct StreamCopy {
  int64_t bytes;
  GNNSYS_TARGET void operator()(char* to, const char* from) const {
    for (int64_t b = 0; b < bytes; b += sizeof(GNNSYS_VECTOR)) {
      GNNSYS_STREAM(reinterpret_cast<GNNSYS_VECTOR*>(to + b),
                    GNNSYS_LOAD(reinterpret_cast<const GNNSYS_VECTOR*>(from + b)));
    }
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
