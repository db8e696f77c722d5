#include "cache/victim_buffer.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace gnnsys {

void VictimBuffer::clear() {
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
    const bool is_elsewhere = look_.directory.is_cached(victim.row) ||
                              cell_of(look_.directory.use(victim.row)) != kNoCell;
    if (!is_elsewhere) offer(victim.row, victim.next, victim.slot);
  }
  const auto offered = static_cast<int64_t>(candidates_.size());
  plan.drops = std::max<int64_t>(0, taken_ + offered - (cells_ - read));
  int64_t rejected = 0;
  look_.take_farthest(plan.drops, now + 1, look_.covered_end() - 1, &CoveredBatch::buffered,
                      [&](int32_t row, int32_t) {
                        if (cell(row) == kPending) {
                          cell(row) = kNoCell;
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
      if (miss.next != kNever) look_.cell(miss.use) = kNoCell;
    }
  }
}

void VictimBuffer::offer(int32_t row, int32_t next, int32_t source) {
  if (next == kNever) return;
  candidates_.push_back({row, next, source});
  cell(row) = kPending;
  look_.batch(next).buffered.push_back(row);
}

// The candidates that were not rejected take the lowest free cells, the soonest used first.
void VictimBuffer::write_cells(CachePlan& plan) {
  std::erase_if(candidates_,
                [this](const Candidate& candidate) { return cell(candidate.row) != kPending; });
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.next != b.next ? a.next < b.next : a.row < b.row;
  });
  // The cells ascend as they are taken, which is the order that a plan lists them in.
  for (const Candidate& candidate : candidates_) {
    const int32_t taken = free_.top();
    free_.pop();
    cell(candidate.row) = taken;
    plan.victim_out.insert(plan.victim_out.end(), {candidate.source, taken});
  }
}

void VictimBuffer::release_row(int32_t row) {
  free_.push(cell(row));
  cell(row) = kNoCell;
  --taken_;
}

}  // namespace gnnsys
