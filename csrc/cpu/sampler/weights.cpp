#include "sampler/weights.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <string>

#include "gnnsys/buffer_pool.hpp"
#include "gnnsys/graph/edges.hpp"
#include "gnnsys/philox.hpp"

namespace gnnsys {
namespace {

constexpr int kMaxMisses = 8;  // draws in a row that meet what was drawn before

// The try-th 53-bit uniform number of a target.
double uniform(const WeightedTarget& target, uint64_t number) {
  const auto block = static_cast<uint32_t>(number / 2);
  const uint64_t word = number % 2 * 2;
  uint64_t high, low;
  if (block < target.blocks) {
    high = target.words[block * kDrawsPerBlock + word];
    low = target.words[block * kDrawsPerBlock + word + 1];
  } else {
    const PhiloxBlock drawn = draw_block(target.key, target.node, target.position, block);
    high = drawn[word];
    low = drawn[word + 1];
  }
  return static_cast<double>((high >> 5 << 26) + (low >> 6)) * 0x1p-53;
}

// The first neighbour whose running sum exceeds the share `u` of the total.
int64_t find(const double* cumulative, int64_t degree, double u) {
  const double total = cumulative[degree - 1];
  const double share = u * total;
  const double* found = std::upper_bound(cumulative, cumulative + degree, share);
  // Among denormal numbers the product may round up to the total.
  if (found == cumulative + degree) found = std::lower_bound(cumulative, found, total);
  return found - cumulative;
}

bool is_drawn(const WeightScratch& scratch, int64_t i) {
  return scratch.drawn[i / 64] >> (i % 64) & 1;
}

// Sums again, without what was drawn: from there on draws meet it no more.
const double* sum_left(const WeightedTarget& target, WeightScratch& scratch) {
  if (static_cast<int64_t>(scratch.left.size()) < target.degree) {
    scratch.left.resize(target.degree);
  }
  double sum = 0;
  for (int64_t i = 0; i < target.degree; ++i) {
    if (!is_drawn(scratch, i)) sum += target.weight[i];
    scratch.left[i] = sum;
  }
  return scratch.left.data();
}

int64_t pick_distinct(const WeightedTarget& target, int64_t k, WeightScratch& scratch,
                      int64_t* picked) {
  if (static_cast<int64_t>(scratch.drawn.size()) * 64 < target.degree) {
    scratch.drawn.resize(target.degree / 64 + 1);
  }
  const double* cumulative = target.cumulative;
  int64_t count = 0;
  int misses = 0;
  for (uint64_t number = 0; count < k && cumulative[target.degree - 1] > 0; ++number) {
    const int64_t i = find(cumulative, target.degree, uniform(target, number));
    if (!is_drawn(scratch, i)) {
      scratch.drawn[i / 64] |= uint64_t{1} << (i % 64);
      picked[count++] = i;
      misses = 0;
    } else if (++misses == kMaxMisses) {
      cumulative = sum_left(target, scratch);
      misses = 0;
    }
  }
  for (int64_t p = 0; p < count; ++p) scratch.drawn[picked[p] / 64] = 0;
  return count;
}

}  // namespace

std::shared_ptr<const double> sum_weights(const Relation& relation, int64_t num_targets,
                                          int number) {
  const std::string name = "relation " + std::to_string(number);
  const std::span indptr(relation.indptr, static_cast<std::size_t>(num_targets) + 1);
  if (find_indptr_fault(indptr, relation.num_edges) >= 0) {
    throw std::invalid_argument(name + ": indptr is not ascending from 0 to the number of edges");
  }
  // On huge pages, which spare the searches most misses of the TLB.
  const std::shared_ptr<char> area = map_zeros(relation.num_edges * sizeof(double));
  auto* const cumulative = reinterpret_cast<double*>(area.get());
  for (int64_t v = 0; v < num_targets; ++v) {
    double sum = 0;
    for (int64_t e = relation.indptr[v]; e < relation.indptr[v + 1]; ++e) {
      const double weight = relation.edge_weight[e];
      sum += weight;
      if (!(weight >= 0) || !std::isfinite(sum)) {
        throw std::invalid_argument(
            name + ": the weight at position " + std::to_string(e) + " of the CSC is " +
            std::to_string(weight) +
            (weight >= 0 && std::isfinite(weight)
                 ? ", and the weights of node " + std::to_string(v) + " overflow when summed"
                 : "; weights are finite and not negative"));
      }
      cumulative[e] = sum;
    }
  }
  return {area, cumulative};
}

int64_t pick_weighted(const WeightedTarget& target, int64_t k, bool replace, WeightScratch& scratch,
                      int64_t* picked) {
  if (target.degree == 0 || target.cumulative[target.degree - 1] <= 0) return 0;
  if (replace) {
    for (int64_t p = 0; p < k; ++p) {
      picked[p] = find(target.cumulative, target.degree, uniform(target, p));
    }
  } else {
    k = pick_distinct(target, k, scratch, picked);
  }
  std::sort(picked, picked + k);
  return k;
}

}  // namespace gnnsys
