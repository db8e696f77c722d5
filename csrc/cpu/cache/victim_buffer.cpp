#include "cache/victim_buffer.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace gnnsys {

void VictimBuffer::clear() {
  cell_of_.clear();
  std::vector<int32_t> cells(static_cast<std::size_t>(cells_));
  std::iota(cells.begin(), cells.end(), 0);
  free_ = decltype(free_)(std::greater<>(), std::move(cells));
  taken_ = 0;
}

void VictimBuffer::save(const std::vector<Miss>& misses, const std::vector<Victim>& victims,
                        CachePlan& plan) {
  if (cells_ == 0) return;
  const int64_t now = look_.first_batch();
  const auto read = static_cast<int64_t>(look_.batch(now).buffered.size());
  taken_ -= read;
  candidates_.clear();
  for (const Miss& miss : misses) {
    if (miss.slot < 0 && miss.cell < 0) offer(miss.row, miss.next, -1 - miss.staging);
  }
  for (const Victim& victim : victims) {
    const bool is_elsewhere =
        look_.directory.is_cached(victim.row) || cell_of_.contains(victim.row);
    if (!is_elsewhere) offer(victim.row, victim.next, victim.slot);
  }
  const auto offered = static_cast<int64_t>(candidates_.size());
  plan.drops = std::max<int64_t>(0, taken_ + offered - (cells_ - read));
  int64_t rejected = 0;
  look_.take_farthest(plan.drops, now + 1, look_.covered_end() - 1, &CoveredBatch::buffered,
                      [&](int32_t row, int32_t) {
                        if (cell_of(row) == kPending) {
                          cell_of_.erase(row);
                          ++rejected;
                        } else {
                          release_row(row);
                        }
                      });
  taken_ += offered - rejected;
  write_cells(plan);
  for (const Miss& miss : misses) {
    if (miss.cell < 0) continue;
    if (miss.slot < 0 && miss.next != kNever) {
      look_.batch(miss.next).buffered.push_back(miss.row);
      ++taken_;
    } else {
      free_.push(miss.cell);
      cell_of_.erase(miss.row);
    }
  }
}

void VictimBuffer::offer(int32_t row, int32_t next, int32_t source) {
  if (next == kNever) return;
  candidates_.push_back({row, next, source});
  cell_of_[row] = kPending;
  look_.batch(next).buffered.push_back(row);
}

// The candidates that were not rejected take the lowest free cells, the soonest used first.
void VictimBuffer::write_cells(CachePlan& plan) {
  std::erase_if(candidates_,
                [this](const Candidate& candidate) { return !cell_of_.contains(candidate.row); });
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.next != b.next ? a.next < b.next : a.row < b.row;
  });
  // The cells ascend as they are taken, which is the order that a plan lists them in.
  for (const Candidate& candidate : candidates_) {
    const int32_t cell = free_.top();
    free_.pop();
    cell_of_[candidate.row] = cell;
    plan.victim_out.insert(plan.victim_out.end(), {candidate.source, cell});
  }
}

void VictimBuffer::release_row(int32_t row) {
  const auto found = cell_of_.find(row);
  free_.push(found->second);
  cell_of_.erase(found);
  --taken_;
}

int64_t VictimBuffer::bytes() const {
  // Of a map: the row, the cell and a pointer in a node that malloc rounds up, and the buckets.
  return static_cast<int64_t>(free_.size() * sizeof(int32_t) + cell_of_.size() * 32 +
                              cell_of_.bucket_count() * sizeof(void*));
}

}  // namespace gnnsys
