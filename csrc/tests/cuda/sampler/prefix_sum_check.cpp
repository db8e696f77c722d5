#include "cuda/sampler/prefix_sum.cuh"

#include <numeric>
#include <vector>

#include "launches.hpp"

namespace {

using namespace gnnsys::cuda;

std::vector<i64> sums_before(const std::vector<i64>& values) {
  std::vector<i64> sums(values.size() + 1);
  std::partial_sum(values.begin(), values.end(), sums.begin() + 1);
  return sums;
}

template <class Count>
void check_counts(simt::Random& random, i64 n, i64 most) {
  simt::Exact<Count> counts(n);
  std::vector<i64> values(n);
  for (i64 i = 0; i < n; ++i)
    values[i] = counts[i] = static_cast<Count>(simt::draw(random, 0, most));
  EXPECT(launches::prefix_sum(random, counts.data(), n).copy() == sums_before(values),
         "sums of %lld", static_cast<long long>(n));
}

}  // namespace

void simt::check(Random& random, bool tiny) {
  const std::vector<i64> sizes =
      tiny ? std::vector<i64>{0, kScanTile + 1}
           : std::vector<i64>{0,
                              1,
                              31,
                              32,
                              33,
                              kScanTile - 1,
                              kScanTile,
                              kScanTile + 1,
                              draw(random, 2, 5) * kScanTile + draw(random, -40, 40)};
  for (i64 n : sizes) {
    check_counts<i64>(random, n, i64{1} << 45);
    check_counts<u8>(random, n, 1);
  }
  // So many tiles that their sums are several tiles themselves.
  std::vector<i64> sums(tiny ? 1 : 2 * kScanTile + 77);
  for (i64& sum : sums) sum = draw(random, 0, i64{1} << 40);
  const std::vector<i64> expected = sums_before(sums);
  sums.push_back(-1);
  Exact<i64> scanned(sums);
  const i64 tiles = static_cast<i64>(sums.size()) - 1;
  launch({1}, {kScanThreads}, scan_sums, scanned.data(), tiles, &scanned[tiles]);
  EXPECT(scanned.copy() == expected, "sums of %lld tiles", static_cast<long long>(tiles));
}
