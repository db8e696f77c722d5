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
    CoveredBatch& last = batch(covered_ - 1);
    for (; next_ != last.first; --next_) {
      const UseRecord& gone = ring_[(next_ - 1) & mask()];
      directory[gone.id].last = gone.previous;
      if (is_live(gone.previous, gone.id)) ring_[gone.previous & mask()].next = kNever;
    }
  }
  batches_.resize(static_cast<std::size_t>(number - first_batch_));
}

void Lookahead::reset(int64_t next) {
  batches_.clear();
  live_ = next_;
  first_batch_ = covered_ = next;
}

int32_t Lookahead::next_use(int32_t row) const {
  uint32_t number = directory[row].last;
  if (!is_live(number, row)) return kNever;
  while (is_live(record(number).previous, row)) number = record(number).previous;
  const auto covered = batches_.begin() + (covered_ - first_batch_);
  // Signed, because the records of the batch that is being planned are retired.
  const auto offset = [this](uint32_t record) { return static_cast<int32_t>(record - live_); };
  const auto after = std::upper_bound(
      batches_.begin(), covered, offset(number),
      [&](int32_t at, const CoveredBatch& batch) { return at < offset(batch.first); });
  return static_cast<int32_t>(first_batch_ + (after - batches_.begin()) - 1);
}

void Lookahead::reserve_records(int64_t more) {
  const auto live = static_cast<int64_t>(next_ - live_);
  if (live + more > std::numeric_limits<int32_t>::max()) {
    throw std::length_error("the window holds more than 2^31 - 1 ids: make it narrower");
  }
  if (live + more <= static_cast<int64_t>(ring_.size())) return;
  std::size_t size = ring_.size();
  while (static_cast<int64_t>(size) < live + more) size *= 2;
  std::vector<UseRecord> wider(size);
  for (uint32_t number = live_; number != next_; ++number) {
    wider[number & (size - 1)] = ring_[number & mask()];
  }
  ring_.swap(wider);
}

int64_t Lookahead::bytes() const {
  auto bytes = directory.bytes() + static_cast<int64_t>(ring_.capacity() * sizeof(UseRecord));
  for (const CoveredBatch& batch : batches_) {
    bytes += static_cast<int64_t>(sizeof(CoveredBatch) +
                                  sizeof(int32_t) *
                                      (batch.ids.capacity() + batch.copies.capacity() +
                                       batch.waiting.capacity() + batch.buffered.capacity()));
  }
  return bytes;
}

}  // namespace gnnsys
