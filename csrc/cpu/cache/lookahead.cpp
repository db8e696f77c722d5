#include "cache/lookahead.hpp"

#include <stdexcept>
#include <utility>

namespace gnnsys {

void Lookahead::push(std::vector<int32_t>&& ids) {
  if (end_batch() == kNever) throw std::length_error("2^31 - 1 batches were announced");
  CoveredBatch& batch = batches_.emplace_back();
  batch.rows = static_cast<int64_t>(ids.size());
  batch.ids = std::move(ids);
}

void Lookahead::pop() {
  batches_.pop_front();
  ++first_batch_;
}

void Lookahead::drop_from(int64_t number) {
  for (; covered_ > number; --covered_) {
    const CoveredBatch& last = batch(covered_ - 1);
    for (; next_ != last.first; --next_) {
      const UseRecord& gone = record(next_ - 1);
      const bool has_use = is_live(gone.before);
      if (has_use) ring_[gone.before & mask()].following = gone.following;
      if (has_use && cells_.size() > 0) cell(gone.before) = cell(next_ - 1);
      directory.use(gone.id) = has_use ? gone.before : ~static_cast<uint32_t>(gone.following);
    }
  }
  batches_.resize(static_cast<std::size_t>(number - first_batch_));
}

void Lookahead::reset(int64_t next) {
  for (; live_ != next_; ++live_) retire(record(live_), directory.use(record(live_).id));
  batches_.clear();
  first_batch_ = covered_ = next;
}

int32_t Lookahead::next_use(uint32_t use) const {
  if (!is_live(use)) return kNever;
  while (is_live(record(use).before)) use = record(use).before;
  const auto covered = batches_.begin() + (covered_ - first_batch_);
  // A number of 30 bits, with a sign: the batch that is being planned begins before all that live.
  const auto offset = [this](uint32_t record) {
    return static_cast<int32_t>((record - live_) << 2) >> 2;
  };
  const auto after = std::upper_bound(
      batches_.begin(), covered, offset(use),
      [&](int32_t at, const CoveredBatch& batch) { return at < offset(batch.first); });
  return static_cast<int32_t>(first_batch_ + (after - batches_.begin()) - 1);
}

void Lookahead::reserve_records(int64_t more) {
  const auto live = static_cast<int64_t>(next_ - live_);
  if (live + more > kMaxRecords) {
    throw std::length_error("the window holds more than 2^29 ids: make it narrower");
  }
  if (live + more <= ring_.size()) return;
  int64_t size = ring_.size();
  while (size < live + more) size *= 2;
  ZeroedArray<UseRecord> wider(size);
  for (uint32_t number = live_; number != next_; ++number)
    wider[number & (size - 1)] = record(number);
  ZeroedArray<int32_t> wider_cells(cells_.size() > 0 ? size : 0);
  for (uint32_t number = live_; cells_.size() > 0 && number != next_; ++number) {
    wider_cells[number & (size - 1)] = cell(number);
  }
  ring_ = std::move(wider);
  cells_ = std::move(wider_cells);
}

int64_t Lookahead::bytes() const {
  auto bytes = directory.bytes() + ring_.bytes() + cells_.bytes();
  for (const CoveredBatch& batch : batches_) {
    bytes += static_cast<int64_t>(sizeof(CoveredBatch) +
                                  sizeof(int32_t) *
                                      (batch.ids.capacity() + batch.copies.capacity() +
                                       batch.waiting.capacity() + batch.buffered.capacity()));
  }
  return bytes;
}

}  // namespace gnnsys
