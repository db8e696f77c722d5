#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <ranges>

#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// Runs work(begin, end) over rows with edges, in shares of about as many edges and rows.
//
// indptr (rows + 1); edge_bytes is what one edge reads.
template <class Work>
void share_rows(const ThreadPool& pool, const int64_t* indptr, int64_t rows, int64_t edge_bytes,
                const Work& work) {
  constexpr int64_t kShareBytes = int64_t{128} << 10;  // a smaller share is not worth a thread
  // For each thread, so that one whose core is busy with other work does not hold all up.
  constexpr int64_t kSharesPerThread = 8;
  const auto cost = [&](int64_t row) { return indptr[row] - indptr[0] + row; };
  const int64_t total = cost(rows);
  const int64_t shares =
      std::clamp<int64_t>(total * edge_bytes / kShareBytes, 1, kSharesPerThread * pool.size());
  // The first row of a share.
  const auto border = [&](int64_t share) {
    const int64_t least = total / shares * share + std::min(share, total % shares);
    const auto all = std::views::iota(int64_t{0}, rows);
    const auto first =
        std::ranges::partition_point(all, [&](int64_t row) { return cost(row) < least; });
    return static_cast<int64_t>(first - all.begin());
  };
  parallel_for(pool, shares, 1,
               [&](int64_t begin, int64_t end) { work(border(begin), border(end)); });
}

// Shares rows out to work that returns -1, or what is wrong. Returns one of the latter, or -1.
template <class Work>
int64_t find_in_shares(const ThreadPool& pool, const int64_t* indptr, int64_t rows,
                       int64_t edge_bytes, const Work& work) {
  std::atomic<int64_t> bad{-1};
  share_rows(pool, indptr, rows, edge_bytes, [&](int64_t begin, int64_t end) {
    const int64_t found = work(begin, end);
    if (found >= 0) bad.store(found, std::memory_order_relaxed);
  });
  return bad.load();
}

}  // namespace gnnsys
