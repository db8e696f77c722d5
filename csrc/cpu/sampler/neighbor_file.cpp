#include "gnnsys/sampler/neighbor_file.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/errors.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kPiece = int64_t{1} << 18;        // neighbours that are gathered at a time
constexpr int64_t kKeptAtATime = int64_t{1} << 16;  // blocks
constexpr int64_t kDistance = 16;                   // how far ahead of their use blocks are fetched

ReaderOptions for_scans(ReaderOptions options) {
  options.largest_request = int64_t{1} << 20;
  return options;
}

}  // namespace

NeighborFile::NeighborFile(std::string path, int handle, int64_t size, int64_t offset, bool wide,
                           ReaderOptions options, BackendFactory backend)
    : path_(std::move(path)),
      size_(size),
      wide_(wide),
      per_block_(kBlock / (wide ? sizeof(int64_t) : sizeof(int32_t))),
      blocks_({{handle, size / per_block_, offset}}, kBlock, for_scans(options), backend),
      neighbors_({{handle, size, offset}}, kBlock / per_block_, options, backend),
      slot_(size / per_block_ + 1, -1) {}

void NeighborFile::fail(const ReadFault& fault) const {
  throw ReadError(path_, fault.offset, fault.code);
}

void NeighborFile::keep(std::span<const int64_t> blocks) {
  const auto count = static_cast<int64_t>(blocks.size());
  for (int64_t i = 0; i < count; ++i) {
    require(blocks[i] >= (i ? blocks[i - 1] + 1 : 0) && blocks[i] < this->blocks(),
            "keep: blocks do not ascend strictly within the file");
  }
  std::fill(slot_.begin(), slot_.end(), -1);
  kept_ = nullptr;  // before there is another
  kept_ = map_zeros(std::max<int64_t>(count, 1) * kBlock);
  for (int64_t first = 0; first < count; first += kKeptAtATime) {
    const auto found = blocks_.gather(blocks.data() + first, std::min(kKeptAtATime, count - first),
                                      kept_.get() + first * kBlock);
    if (found.fault) fail(*found.fault);
  }
  for (int64_t i = 0; i < count; ++i) slot_[blocks[i]] = static_cast<int32_t>(i);
}

template <class Index>
void NeighborFile::gather(const int64_t* position, int64_t n, Index* neighbor) {
  for (int64_t first = 0; first < n; first += kPiece) {
    gather_piece(position + first, std::min(kPiece, n - first), neighbor + first);
  }
}

template void NeighborFile::gather<int32_t>(const int64_t*, int64_t, int32_t*);
template void NeighborFile::gather<int64_t>(const int64_t*, int64_t, int64_t*);

template <class Index>
void NeighborFile::gather_piece(const int64_t* position, int64_t n, Index* neighbor) {
  constexpr auto kPerBlock = static_cast<int64_t>(kBlock / sizeof(Index));
  const auto* const kept = reinterpret_cast<const Index*>(kept_.get());
  const auto place_of = [&](int64_t at) {
    const int64_t slot = slot_[at / kPerBlock];
    return slot < 0 ? slot : slot * kPerBlock + at % kPerBlock;
  };
  std::vector<int64_t> missing, rank;
  for (int64_t i = 0; i < n; ++i) {
    if (i + kDistance < n) {
      __builtin_prefetch(kept + std::max<int64_t>(0, place_of(position[i + kDistance])));
    }
    const int64_t place = place_of(position[i]);
    if (place >= 0) {
      neighbor[i] = kept[place];
    } else {
      missing.push_back(position[i]);
      rank.push_back(i);
    }
  }
  const auto count = static_cast<int64_t>(missing.size());
  served_.fetch_add(n - count, std::memory_order_relaxed);
  read_.fetch_add(count, std::memory_order_relaxed);
  if (count == 0) return;
  std::vector<Index> found(missing.size());
  const auto outcome =
      neighbors_.gather(missing.data(), count, reinterpret_cast<char*>(found.data()));
  if (outcome.fault) fail(*outcome.fault);
  for (int64_t i = 0; i < count; ++i) neighbor[rank[i]] = found[i];
}

NeighborFile::Counts NeighborFile::counts() const {
  const auto [rows, requests, pages, bytes, nanoseconds] = neighbors_.counts();
  return {served_, read_, requests, pages, bytes, nanoseconds};
}

void weigh_blocks(std::span<const int64_t> indptr, std::span<const uint16_t> importance,
                  int64_t fanout, int64_t per_block, std::span<double> weight) {
  const auto nodes = static_cast<int64_t>(indptr.size()) - 1;
  const auto blocks = static_cast<int64_t>(weight.size());
  require(nodes >= 0 && fanout > 0 && per_block > 0, "weigh_blocks: sizes below 1");
  require(importance.empty() || static_cast<int64_t>(importance.size()) == nodes,
          "weigh_blocks: not one importance for each node");
  std::fill(weight.begin(), weight.end(), 0.0);
  for (int64_t v = 0; v < nodes; ++v) {
    const int64_t first = indptr[v], end = indptr[v + 1];
    require(first <= end, "weigh_blocks: indptr descends");
    const auto degree = static_cast<double>(end - first);
    if (first == end) continue;
    // A batch expands a node once, however often it is drawn: the degree itself would overrate
    // hubs.
    double use = std::sqrt(degree);
    if (!importance.empty()) {
      // Of the powers of the rank that were tried on R-MAT the fourth leaves the fewest reads.
      const double rank = importance[v] + 1.0;
      use = rank * rank * rank * rank;
    }
    const double of_an_edge = use * std::min(degree, static_cast<double>(fanout)) / degree;
    for (int64_t block = first / per_block; block < blocks && block * per_block < end; ++block) {
      const int64_t from = std::max(first, block * per_block);
      const int64_t to = std::min(end, (block + 1) * per_block);
      weight[block] += of_an_edge * static_cast<double>(to - from);
    }
  }
}

}  // namespace gnnsys
