#include "cuda/sampler/philox.cuh"

#include "gnnsys/philox.hpp"
#include "reference.hpp"
#include "simt/check.hpp"

namespace {

using namespace gnnsys::cuda;

struct Words {
  u32 word[4];
  u64 key;
  u32 bounded;
};

__global__ void draw_words(const Stream* streams, const u64* nodes, const u32* bounds, i64 n,
                           u32 retry, Words* words) {
  for (i64 i = thread_number(); i < n; i += thread_count()) {
    const Draws draws{streams[i].key(), nodes[i]};
    words[i].key = draws.key;
    for (u32 draw = 0; draw < 4; ++draw)
      words[i].word[draw] = draws.word(4 * bounds[i] + draw, retry);
    words[i].bounded = draws.bounded(bounds[i] % 4096, bounds[i]);
  }
}

}  // namespace

void simt::check(Random& random, bool) {
  const i64 n = 100;
  Exact<Stream> streams(n);
  Exact<u64> nodes(n);
  Exact<u32> bounds(n);
  for (i64 i = 0; i < n; ++i) {
    // Zeros, small numbers and all bits; bounds whose draws are often rejected, too.
    const int shift = i % 3 == 0 ? 0 : 58;
    streams[i] = {random() >> shift, random() >> shift, random() >> shift, random() >> shift,
                  i == 0 ? 0 : random() >> shift};
    nodes[i] = random() >> (i % 2 ? 20 : 40);
    bounds[i] = static_cast<u32>(random() >> (32 + i % 2 * 20)) | (i % 2 == 0) * (1u << 31) | 1u;
  }
  for (u32 retry : {0u, 1u, 255u}) {
    Exact<Words> words(n);
    launch({2}, {32}, draw_words, streams.data(), nodes.data(), bounds.data(), n, retry,
           words.data());
    for (i64 i = 0; i < n; ++i) {
      const Stream& s = streams[i];
      const u64 key = gnnsys::stream_key(s.seed, s.epoch, s.group, s.hop, s.edge_type);
      EXPECT(words[i].key == key, "the key of stream %lld", static_cast<long long>(i));
      const auto block = gnnsys::draw_block(key, nodes[i], 0,
                                            (bounds[i] & 0x3fffffffu) + gnnsys::kRetryStep * retry);
      for (int draw = 0; draw < 4; ++draw) EXPECT(words[i].word[draw] == block[draw], "a word");
      EXPECT(words[i].bounded == reference::bounded(key, nodes[i], bounds[i] % 4096, bounds[i]),
             "a draw below %u", bounds[i]);
    }
  }
}
