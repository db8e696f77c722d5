#include "sampler/labor.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "gnnsys/philox.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kPiece = 1024;  // neighbours that are read, and draws that are made, at once
constexpr int kCoarseShift = 24;  // what CoarseDraws leaves out of a draw
constexpr uint64_t kAll = uint64_t{1} << 32;

// Draws below it keep their edge: word / 2^32 < fanout / degree, exactly.
uint64_t limit_of(int64_t fanout, int64_t degree) {
  if (fanout < 0 || degree <= fanout) return kAll;
  return ((static_cast<uint64_t>(fanout) << 32) + degree - 1) / degree;
}

// Four sources share a block: draw t % 4 of "node" t / 4.
uint32_t draw_of(uint64_t key, int64_t source) {
  return draw_block(key, static_cast<uint64_t>(source) / kDrawsPerBlock, 0,
                    0)[source % kDrawsPerBlock];
}

// `source` are the neighbours at the positions from `first` on, here and below.
template <class Index>
void check_sources(const RelationHop& hop, const Index* source, int64_t first, int64_t count) {
  using Bits = std::make_unsigned_t<Index>;
  constexpr auto kHighest = std::numeric_limits<Index>::max();
  // A node is outside where it or its distance to the last node is negative: arithmetic that every
  // instruction set does for several at once.
  const auto last = static_cast<Bits>(std::min<int64_t>(hop.num_sources - 1, kHighest));
  Bits signs = 0;
  for (int64_t e = 0; e < count; ++e) {
    const auto node = static_cast<Bits>(source[e]);
    signs |= node | (last - node);
  }
  if (signs <= kHighest) return;
  for (int64_t e = 0; e < count; ++e) {
    if (is_outside(source[e], hop.num_sources)) {
      throw_bad_source(hop.number, first + e, source[e], hop.num_sources);
    }
  }
}

// Keeps edges by the coarse draws, and by the draws where these do not decide.
template <class Index>
void screen(const RelationHop& hop, const Index* source, int64_t first, int64_t count,
            uint64_t limit, EdgeBuffer& out) {
  check_sources(hop, source, first, count);
  const uint64_t coarse_limit = limit >> kCoarseShift;
  out.reserve(out.size + count + 1);
  int64_t* const edge = out.edge.get() + out.size;
  int64_t candidates = 0;
  for (int64_t e = 0; e < count; ++e) {
    edge[candidates] = e;
    candidates += hop.coarse[source[e]] <= coarse_limit;
  }
  for (int64_t c = 0; c < candidates; ++c) {
    const int64_t v = source[edge[c]];
    out.source[out.size] = v;
    out.edge[out.size] = first + edge[c];
    out.size += hop.coarse[v] < coarse_limit || draw_of(hop.key, v) < limit;
  }
}

// Makes the draws of the neighbours themselves, many targets' at once.
template <class Index>
class Drawing {
 public:
  Drawing(const RelationHop& hop, PickScratch& scratch, EdgeBuffer& out)
      : hop_(hop), scratch_(scratch), out_(out) {
    scratch_.reserve_nodes(kPiece);
    scratch_.reserve_words(kPiece, 1);
  }

  // At most kPiece edges.
  void add(int64_t target, const Index* source, int64_t first, int64_t count, uint64_t limit,
           uint32_t position) {
    if (filled_ + count > kPiece) flush();
    check_sources(hop_, source, first, count);
    for (int64_t e = 0; e < count; ++e) {
      scratch_.nodes[filled_ + e] = source[e] / kDrawsPerBlock;
    }
    if (hop_.tree) std::fill_n(scratch_.positions.data() + filled_, count, position);
    parts_.push_back({target, source, first, count, limit});
    filled_ += count;
  }

  void flush() {
    hop_.philox(hop_.key, scratch_.nodes.data(), hop_.tree ? scratch_.positions.data() : nullptr,
                filled_, 1, scratch_.words.data());
    out_.reserve(out_.size + filled_ + 1);
    const uint32_t* words = scratch_.words.data();
    for (const Part& part : parts_) {
      const Index* const source = part.source;
      const int64_t before = out_.size;
      for (int64_t e = 0; e < part.count; ++e, words += kDrawsPerBlock) {
        out_.edge[out_.size] = part.first + e;
        out_.source[out_.size] = source[e];
        out_.size += words[source[e] % kDrawsPerBlock] < part.limit;
      }
      hop_.count[part.target] += static_cast<uint32_t>(out_.size - before);
    }
    parts_.clear();
    filled_ = 0;
  }

 private:
  struct Part {
    int64_t target;
    const Index* source;
    int64_t first, count;
    uint64_t limit;
  };

  const RelationHop& hop_;
  PickScratch& scratch_;
  EdgeBuffer& out_;
  std::vector<Part> parts_;
  int64_t filled_ = 0;
};

}  // namespace

const uint8_t* CoarseDraws::of(uint64_t key, int64_t num_sources, PhiloxNodes philox,
                               const ThreadPool& threads) {
  if (!draws_.empty() && key_ == key) return draws_.data();
  const int64_t blocks = (num_sources + kDrawsPerBlock - 1) / kDrawsPerBlock;
  draws_.resize(blocks * kDrawsPerBlock);
  key_ = key;
  parallel_for(threads, blocks, 64 * kPiece, [&](int64_t begin, int64_t end) {
    int64_t nodes[kPiece];
    uint32_t words[kPiece * kDrawsPerBlock];
    for (; begin < end; begin += kPiece) {
      const int64_t count = std::min(kPiece, end - begin);
      for (int64_t i = 0; i < count; ++i) nodes[i] = begin + i;
      philox(key, nodes, nullptr, count, 1, words);
      uint8_t* const draws = draws_.data() + begin * kDrawsPerBlock;
      for (int64_t w = 0; w < count * kDrawsPerBlock; ++w) {
        draws[w] = static_cast<uint8_t>(words[w] >> kCoarseShift);
      }
    }
  });
  return draws_.data();
}

template <class Index>
void pick_by_source(const RelationHop& hop, int64_t begin, int64_t end, const Index* lists,
                    ExpandScratch& scratch, EdgeBuffer& out) {
  const Index* const indices = indices_of<Index>(hop);
  Drawing<Index> drawing(hop, scratch.pick, out);
  for (int64_t i = begin; i < end; ++i) {
    if (i + 4 < end) __builtin_prefetch(indices + scratch.first[i + 4 - begin]);
    const int64_t first = scratch.first[i - begin], degree = scratch.degree[i - begin];
    const Index* const list = lists ? lists : indices + first;
    if (lists) lists += degree;
    const uint64_t limit = limit_of(hop.fanout, degree);
    const int64_t before = out.size;
    hop.count[i] = 0;
    for (int64_t done = 0; done < degree; done += kPiece) {
      const int64_t count = std::min(kPiece, degree - done);
      if (hop.coarse) {
        screen(hop, list + done, first + done, count, limit, out);
      } else {
        drawing.add(i, list + done, first + done, count, limit, scratch.position[i - begin]);
      }
    }
    if (hop.coarse) hop.count[i] = static_cast<uint32_t>(out.size - before);
  }
  drawing.flush();
}

template void pick_by_source(const RelationHop&, int64_t, int64_t, const int32_t*, ExpandScratch&,
                             EdgeBuffer&);
template void pick_by_source(const RelationHop&, int64_t, int64_t, const int64_t*, ExpandScratch&,
                             EdgeBuffer&);

}  // namespace gnnsys
