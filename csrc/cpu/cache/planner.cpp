#include "gnnsys/cache/planner.hpp"

#include <algorithm>
#include <deque>
#include <span>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "cache/lookahead.hpp"
#include "cache/never_queue.hpp"
#include "cache/queues.hpp"
#include "cache/victim_buffer.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kMaxRows = kNever - 1;
// The place of a row that the plan in the making has decided against.
constexpr int32_t kRejected = std::numeric_limits<int32_t>::min();

// A slot that changes hands.
struct Change {
  int32_t slot;
  int32_t before;  // row, or -1
  int32_t after;
};

// What undoing a plan needs.
struct PlanLog {
  std::vector<Change> changes;
  std::vector<Journal::Entry> journal;
};

void check_range(const std::string& name, int64_t value, const char* way_out,
                 int64_t most = kMaxRows) {
  const std::string found = name + "=" + std::to_string(value);
  if (value < 0) throw std::invalid_argument(found + ": expected at least 0");
  if (value <= most) return;
  throw std::invalid_argument(found + " > " + std::to_string(most) +
                              ": plans number rows, positions and cells in int32; " + way_out);
}

constexpr std::pair<const char*, CachePolicy> kPolicies[] = {
    {"hybrid", CachePolicy::kHybrid},
    {"lookahead", CachePolicy::kLookahead},
    {"hybrid-pvp", CachePolicy::kHybridPvp},
    {"lru", CachePolicy::kLru},
    {"lfu", CachePolicy::kLfu},
    {"static", CachePolicy::kStatic},
    {"sieve", CachePolicy::kSieve},
    {"s3fifo", CachePolicy::kS3Fifo}};

class Planner final : public CachePlanner {
 public:
  explicit Planner(const CacheSetting& setting)
      : num_rows_(setting.num_rows),
        capacity_(std::min(setting.capacity, setting.num_rows)),
        policy_(setting.policy),
        window_(std::min<int64_t>(setting.window, kNever)),
        importance_(setting.importance),
        look_(setting.num_rows),
        buffer_(setting.victim_cells, look_),
        never_(setting.importance && policy_ != CachePolicy::kLookahead),
        queue_(make_cache_queue(policy_, num_rows_, capacity_)),
        row_of_(capacity_, -1),
        waits_never_(queue_ ? 0 : capacity_) {
    if (policy_ == CachePolicy::kHybridPvp && setting.victim_cells > 0) far_ = window_ / 8;
    if (setting.prefill && importance_) fill_by_importance();
  }

  std::vector<int64_t> prefilled() const override { return {prefilled_.begin(), prefilled_.end()}; }
  int64_t announced() const override { return look_.end_batch(); }
  int64_t planned() const override { return look_.first_batch(); }
  int64_t committed() const override { return planned() - static_cast<int64_t>(logs_.size()); }

  int64_t announce(std::span<const int32_t> ids) override { return take(ids); }
  int64_t announce(std::span<const int64_t> ids) override { return take(ids); }

  CachePlan plan() override {
    if (planned() == announced()) {
      throw std::invalid_argument("batch " + std::to_string(planned()) +
                                  " cannot be planned: announce it first");
    }
    const int64_t now = planned();
    look_.cover(now + window_ + 1, [this](int32_t row, int32_t batch) { wait_for(row, batch); });
    CoveredBatch& batch = look_.batch(now);
    look_.retire_records();
    CachePlan plan;
    plan.batch = now;
    plan.rows = batch.rows;
    plan.copies = std::move(batch.copies);
    misses_.clear();
    keys_.clear();
    victims_.clear();
    PlanLog log;
    if (queue_) {
      serve_by_queue(batch, plan);
      log.journal = queue_->journal.take();
    } else {
      serve(batch, plan);
      choose(static_cast<int64_t>(misses_.size()) - (capacity_ - used_));
    }
    plan.evictions = static_cast<int64_t>(victims_.size());
    fill_slots(log);
    list_misses(plan);
    buffer_.save(misses_, victims_, plan);
    logs_.push_back(std::move(log));
    look_.pop();
    return plan;
  }

  void commit(int64_t batch) override {
    if (batch != committed() || logs_.empty()) {
      throw std::invalid_argument("batch " + std::to_string(batch) +
                                  " cannot be committed: " + std::to_string(committed()) +
                                  " is the next, and the batches below " +
                                  std::to_string(planned()) + " are planned");
    }
    logs_.pop_front();
  }

  void retract(int64_t batch) override {
    if (batch < committed() || batch > announced()) {
      throw std::invalid_argument("batch " + std::to_string(batch) +
                                  " cannot be retracted: expected " + std::to_string(committed()) +
                                  " (committed) to " + std::to_string(announced()) +
                                  " (announced)");
    }
    if (batch < planned()) {
      undo_plans(batch);
      return;
    }
    std::vector<int32_t> released;
    for (int64_t b = batch; b < look_.covered_end(); ++b) {
      buffer_.release(b);
      const std::vector<int32_t>& rows = look_.batch(b).waiting;
      released.insert(released.end(), rows.begin(), rows.end());
    }
    look_.drop_from(batch);
    for (int32_t row : released) wait_without_use(row, look_.directory[row].place - 1);
  }

  std::vector<int32_t> committed_slots(std::span<const int64_t> ids) const override {
    check_ids(ids);
    std::unordered_map<int64_t, int32_t> committed;  // of rows that later plans moved
    for (auto log = logs_.rbegin(); log != logs_.rend(); ++log) {
      for (const Change& change : log->changes) committed[change.after] = -1;
      for (const Change& change : log->changes) {
        if (change.before >= 0) committed[change.before] = change.slot;
      }
    }
    std::vector<int32_t> slots;
    slots.reserve(ids.size());
    for (const int64_t id : ids) {
      const auto moved = committed.find(id);
      const int32_t now = std::max(look_.directory[id].place, 0) - 1;
      slots.push_back(moved != committed.end() ? moved->second : now);
    }
    return slots;
  }

  int64_t state_bytes() const override {
    int64_t bytes =
        look_.bytes() + buffer_.bytes() + never_.bytes() + (queue_ ? queue_->bytes() : 0);
    bytes += static_cast<int64_t>(row_of_.capacity() * sizeof(int32_t) + waits_never_.capacity() +
                                  misses_.capacity() * sizeof(Miss) +
                                  victims_.capacity() * sizeof(Victim));
    for (const PlanLog& log : logs_) {
      bytes += static_cast<int64_t>(log.changes.capacity() * sizeof(Change) +
                                    log.journal.capacity() * sizeof(Journal::Entry));
    }
    return bytes;
  }

 private:
  template <class Id>
  int64_t take(std::span<const Id> ids) {
    check_range("positions of a batch", static_cast<int64_t>(ids.size()), "split it");
    check_ids(ids);
    look_.push(std::vector<int32_t>(ids.begin(), ids.end()));
    return announced() - 1;
  }

  template <class Id>
  void check_ids(std::span<const Id> ids) const {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (static_cast<uint64_t>(ids[i]) < static_cast<uint64_t>(num_rows_)) continue;
      throw std::out_of_range("id " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                              " is outside [0, " + std::to_string(num_rows_) + ")");
    }
  }

  uint16_t importance(int32_t row) const {
    return importance_ && policy_ != CachePolicy::kLookahead ? importance_[row] : uint16_t{0};
  }

  // The most important rows, the smallest ids among equals: by counting, because a table has many
  // more rows than there are values.
  void fill_by_importance() {
    std::vector<int64_t> rows_of(1 << 16);
    for (int64_t row = 0; row < num_rows_; ++row) ++rows_of[importance_[row]];
    int64_t room = capacity_;
    int least = 1 << 16;
    while (least > 0 && rows_of[least - 1] <= room) room -= rows_of[--least];
    prefilled_.reserve(static_cast<std::size_t>(capacity_));
    for (int64_t row = 0; row < num_rows_ && used_ < capacity_; ++row) {
      const int value = importance_[row];
      if (value < least && (value != least - 1 || room-- <= 0)) continue;
      prefilled_.push_back(static_cast<int32_t>(row));
      row_of_[used_] = static_cast<int32_t>(row);
      look_.directory[row].place = ++used_;
    }
    if (!queue_) {
      wait_for_nothing();
      return;
    }
    std::vector<int32_t> worst_first = prefilled_;
    std::sort(worst_first.begin(), worst_first.end(), [this](int32_t a, int32_t b) {
      return importance_[a] != importance_[b] ? importance_[a] < importance_[b] : a > b;
    });
    queue_->fill(worst_first);
  }

  // A resident without a known next use gets one.
  void wait_for(int32_t row, int32_t batch) {
    if (uses_buckets()) look_.batch(batch).waiting.push_back(row);
  }

  bool uses_buckets() const { return !queue_ && policy_ != CachePolicy::kStatic; }

  // A resident has no next use (or its policy does not ask for one). An entry that is in the queue
  // from before is as good as a new one: its key depends on the row only.
  void wait_without_use(int32_t row, int32_t slot) {
    if (queue_ || waits_never_[slot]) return;
    waits_never_[slot] = 1;
    never_.push(importance(row), row);
  }

  void wait_for_nothing() {
    never_.clear();
    std::fill(waits_never_.begin(), waits_never_.end(), 0);
    for (int32_t slot = 0; slot < used_; ++slot) {
      if (!uses_buckets() || !look_.is_used(row_of_[slot])) wait_without_use(row_of_[slot], slot);
    }
  }

  // Brings what a row of the batch will need near: its directory entry and importance first, then
  // what the entry points to.
  void prefetch_row(const CoveredBatch& batch, int64_t i) {
    if (i + 2 * kPlanDistance < batch.count) {
      const UseRecord& record = record_of(batch, i + 2 * kPlanDistance);
      __builtin_prefetch(&look_.directory[record.id], 1);
      if (record.next == kNever && importance_) __builtin_prefetch(&importance_[record.id]);
    }
    if (i + kPlanDistance < batch.count && !queue_) {
      const int32_t place = look_.directory[record_of(batch, i + kPlanDistance).id].place;
      if (place > 0) __builtin_prefetch(&waits_never_[place - 1], 1);
    }
  }

  const UseRecord& record_of(const CoveredBatch& batch, int64_t i) const {
    return look_.record(batch.first + static_cast<uint32_t>(i));
  }

  // Hits get their new next use. Misses are collected, and become candidates beside the residents:
  // those with a next use in its bucket, the others by their keys, the smallest leaves first.
  void serve(const CoveredBatch& batch, CachePlan& plan) {
    plan.hits.reserve(static_cast<std::size_t>(2 * batch.count));
    for (int64_t i = 0; i < batch.count; ++i) {
      prefetch_row(batch, i);
      const UseRecord& record = record_of(batch, i);
      int32_t& place = look_.directory[record.id].place;
      const bool waits = record.next != kNever && uses_buckets();
      if (waits) look_.batch(record.next).waiting.push_back(record.id);
      if (place > 0) {
        plan.hits.push_back(record.position);
        plan.hits.push_back(place - 1);
        if (!waits) wait_without_use(record.id, place - 1);
        continue;
      }
      misses_.push_back({record.id, record.position, record.next, -1 - place, -1, -1});
      place = kPending;
      if (!waits) {
        keys_.push_back(uint64_t{importance(record.id)} << 32 | static_cast<uint32_t>(~record.id));
      }
    }
  }

  // Decides who stays where `leaving` rows of the residents and the misses must leave.
  void choose(int64_t leaving) {
    if (leaving <= 0) return;
    const int64_t now = planned();
    const int64_t near_end = now + 1 + std::min(far_, look_.covered_end() - 1 - now);
    leaving = take_waiting(leaving, near_end);
    leaving = take_without_use(leaving);
    take_waiting(leaving, now + 1);
    if (never_.size() > 2 * capacity_ + 1024) rebuild_never_ = true;
  }

  int64_t take_waiting(int64_t leaving, int64_t first) {
    return look_.take_farthest(leaving, first, look_.covered_end() - 1, &CoveredBatch::waiting,
                               [this](int32_t row, int32_t batch) { leave(row, batch); });
  }

  // Merges the misses' keys with the residents': misses that leave at once are never queued.
  int64_t take_without_use(int64_t leaving) {
    if (leaving == 0) return 0;
    std::sort(keys_.begin(), keys_.end());
    auto key = keys_.begin();
    while (leaving > 0) {
      const uint16_t least = never_.empty() ? uint16_t{0} : never_.top_importance();
      const int32_t row = never_.empty() ? -1 : never_.top_row(least);
      const uint64_t top = uint64_t{least} << 32 | static_cast<uint32_t>(~row);
      if (key != keys_.end() && (row < 0 || *key < top)) {
        leave(~static_cast<int32_t>(*key++ & 0xffffffff), kNever);
        --leaving;
        continue;
      }
      if (row < 0) break;
      never_.pop(least);
      const int32_t place = look_.directory[row].place;
      if (place <= 0 || place == kPending) continue;  // it left before
      waits_never_[place - 1] = 0;
      if (uses_buckets() && look_.is_used(row)) continue;  // it has got a next use
      leave(row, uses_buckets() ? kNever : look_.next_use(row));
      --leaving;
    }
    return leaving;
  }

  void leave(int32_t row, int32_t next) {
    int32_t& place = look_.directory[row].place;
    if (place == kPending) {
      place = kRejected;
      return;
    }
    victims_.push_back({place - 1, row, next});
    waits_never_[place - 1] = 0;
    place = 0;
  }

  void serve_by_queue(const CoveredBatch& batch, CachePlan& plan) {
    std::vector<int32_t> evicted;
    for (int64_t i = 0; i < batch.count; ++i) {
      prefetch_row(batch, i);
      const UseRecord& record = record_of(batch, i);
      const int32_t place = look_.directory[record.id].place;
      if (queue_->access(record.id, evicted)) {
        plan.hits.push_back(record.position);
        plan.hits.push_back(place - 1);
      } else {
        const int32_t cell = place < 0 ? -1 - place : -1;
        misses_.push_back({record.id, record.position, record.next, cell, -1, -1});
      }
    }
    for (int32_t row : evicted) {
      int32_t& place = look_.directory[row].place;
      if (place <= 0) continue;  // it entered in this batch
      victims_.push_back({place - 1, row, look_.next_use(row)});
      place = 0;
    }
    for (const Miss& miss : misses_) {
      look_.directory[miss.row].place = queue_->contains(miss.row) ? kPending : kRejected;
    }
  }

  // Gives the entering rows their slots, in order of position: those of the victims ascending, then
  // unused ones. Rows that do not enter go back to their cell, or nowhere.
  void fill_slots(PlanLog& log) {
    std::sort(victims_.begin(), victims_.end(),
              [](const Victim& a, const Victim& b) { return a.slot < b.slot; });
    auto victim = victims_.begin();
    for (Miss& miss : misses_) {
      int32_t& place = look_.directory[miss.row].place;
      if (place != kPending) {
        place = miss.cell < 0 ? 0 : -1 - miss.cell;
        continue;
      }
      miss.slot = victim != victims_.end() ? (victim++)->slot : used_++;
      place = miss.slot + 1;
      log.changes.push_back({miss.slot, row_of_[miss.slot], miss.row});
      row_of_[miss.slot] = miss.row;
      if (miss.next == kNever || !uses_buckets()) wait_without_use(miss.row, miss.slot);
    }
    if (!rebuild_never_) return;
    rebuild_never_ = false;
    wait_for_nothing();
  }

  void list_misses(CachePlan& plan) {
    std::vector<uint64_t> order;  // id, number of the miss
    for (std::size_t i = 0; i < misses_.size(); ++i) {
      if (misses_[i].cell < 0) order.push_back(uint64_t(misses_[i].row) << 32 | i);
    }
    std::sort(order.begin(), order.end());
    for (uint64_t at : order) {
      misses_[at & 0xffffffff].staging = static_cast<int32_t>(plan.reads.size());
      plan.reads.push_back(static_cast<int64_t>(at >> 32));
    }
    for (const Miss& miss : misses_) {
      const bool read = miss.cell < 0;
      std::vector<int32_t>& list = read ? plan.fills : plan.victim_in;
      list.insert(list.end(), {miss.position, read ? miss.staging : miss.cell, miss.slot});
    }
  }

  // Every next use that is known lies beyond the plans that are undone, so that none is left: no
  // row waits for a batch, neither in the cache nor in the victim buffer.
  void undo_plans(int64_t batch) {
    buffer_.clear();
    for (int64_t undone = planned(); undone > batch; --undone) {
      const PlanLog& log = logs_.back();
      for (const Change& change : log.changes) look_.directory[change.after].place = 0;
      for (const Change& change : log.changes) {
        row_of_[change.slot] = change.before;
        if (change.before >= 0) {
          look_.directory[change.before].place = change.slot + 1;
        } else {
          --used_;
        }
      }
      Journal::undo(log.journal);
      logs_.pop_back();
    }
    look_.reset(batch);
    if (!queue_) wait_for_nothing();
  }

  const int64_t num_rows_;
  const int64_t capacity_;
  const CachePolicy policy_;
  const int64_t window_;
  const uint16_t* const importance_;
  int64_t far_ = kNever;  // batches; rows whose next use is farther leave before all others

  Lookahead look_;
  VictimBuffer buffer_;
  NeverQueue never_;  // residents without a next use, and entries that are out of date
  bool rebuild_never_ = false;
  std::unique_ptr<CacheQueue> queue_;
  std::vector<int32_t> row_of_;       // (slots,): row, or -1
  std::vector<uint8_t> waits_never_;  // (slots,): the row has an entry in never_
  int32_t used_ = 0;                  // slots that hold a row
  std::vector<int32_t> prefilled_;
  std::deque<PlanLog> logs_;  // of the plans that are not committed

  std::vector<Miss> misses_;  // of the plan in the making, in order of position
  std::vector<Victim> victims_;
  std::vector<uint64_t> keys_;  // of the misses without a next use
};

}  // namespace

CachePolicy parse_cache_policy(const std::string& name) {
  std::string known;
  for (const auto& [each, policy] : kPolicies) {
    if (name == each) return policy;
    if (!known.empty()) known += ", ";
    known += each;
  }
  throw std::invalid_argument("policy='" + name + "': expected one of " + known);
}

std::unique_ptr<CachePlanner> make_cache_planner(const CacheSetting& setting) {
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  check_range("num_rows", setting.num_rows, "read the table without a cache (leave cache= out)");
  check_range("capacity", setting.capacity, "", kAny);
  check_range("window", setting.window, "", kAny);
  check_range("victim_cells", setting.victim_cells, "give a smaller victim_buffer=");
  if (setting.policy == CachePolicy::kS3Fifo) {
    check_range("capacity of s3fifo", std::min(setting.capacity, setting.num_rows),
                "give a smaller cache=", kMaxRows / 2);
  }
  return std::make_unique<Planner>(setting);
}

}  // namespace gnnsys
