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
#include "cache/sort_numbered.hpp"
#include "cache/victim_buffer.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kMaxRows = kNever - 1;
// The use of a row that is a miss of the plan in the making and may enter, is kMiss + its number.
constexpr uint32_t kMiss = 1 << 16;

// A slot that changes hands.
struct Change {
  int32_t slot;
  int32_t before;  // row, or -1
  int32_t after;
};

// A miss without a next use: the smallest key leaves first.
struct MissKey {
  uint64_t key;
  uint32_t miss;  // number
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
        look_(setting.num_rows, capacity_, setting.victim_cells > 0),
        buffer_(setting.victim_cells, look_),
        never_(setting.importance && policy_ != CachePolicy::kLookahead),
        queue_(make_cache_queue(policy_, num_rows_, capacity_)) {
    if (policy_ == CachePolicy::kHybridPvp && setting.victim_cells > 0) far_ = window_ / 8;
    const uint16_t* const importance = setting.importance;
    if (importance && !queue_ && policy_ != CachePolicy::kLookahead) {
      for (int64_t row = 0; row < num_rows_; ++row) {
        look_.directory.use(static_cast<int32_t>(row)) = importance[row];
      }
    }
    if (setting.prefill && importance) fill_by_importance(importance);
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
    for (int32_t row : released) wait_without_use(look_.directory.slot_of(row));
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
      const int32_t now = look_.directory.slot_of(static_cast<int32_t>(id));
      slots.push_back(moved != committed.end() ? moved->second : now);
    }
    return slots;
  }

  int64_t state_bytes() const override {
    int64_t bytes =
        look_.bytes() + buffer_.bytes() + never_.bytes() + (queue_ ? queue_->bytes() : 0);
    bytes += static_cast<int64_t>(
        prefilled_.capacity() * sizeof(int32_t) + misses_.capacity() * sizeof(Miss) +
        victims_.capacity() * sizeof(Victim) + keys_.capacity() * sizeof(MissKey) +
        (order_.capacity() + scratch_.capacity()) * sizeof(uint64_t));
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

  // The most important rows, the smallest ids among equals: by counting, because a table has many
  // more rows than there are values.
  void fill_by_importance(const uint16_t* importance) {
    std::vector<int64_t> rows_of(1 << 16);
    for (int64_t row = 0; row < num_rows_; ++row) ++rows_of[importance[row]];
    int64_t room = capacity_;
    int least = 1 << 16;
    while (least > 0 && rows_of[least - 1] <= room) room -= rows_of[--least];
    prefilled_.reserve(static_cast<std::size_t>(capacity_));
    for (int64_t row = 0; row < num_rows_ && used_ < capacity_; ++row) {
      const int value = importance[row];
      if (value < least && (value != least - 1 || room-- <= 0)) continue;
      const auto id = static_cast<int32_t>(row);
      prefilled_.push_back(id);
      look_.directory.enter(id, used_++, look_.directory.use(id));
    }
    if (!queue_) {
      wait_for_nothing();
      return;
    }
    std::vector<int32_t> worst_first = prefilled_;
    std::sort(worst_first.begin(), worst_first.end(), [importance](int32_t a, int32_t b) {
      return importance[a] != importance[b] ? importance[a] < importance[b] : a > b;
    });
    queue_->fill(worst_first);
  }

  // A cached row without a known next use gets one.
  void wait_for(int32_t row, int32_t batch) {
    if (uses_buckets()) look_.batch(batch).waiting.push_back(row);
  }

  bool uses_buckets() const { return !queue_ && policy_ != CachePolicy::kStatic; }

  // A resident has no next use (or its policy does not ask for one). An entry that is in the queue
  // from before is as good as a new one: its key depends on the row only.
  void wait_without_use(int32_t number) {
    Slot& slot = look_.directory.slot(number);
    if (queue_ || slot.queued) return;
    slot.queued = 1;
    never_.push(look_.importance(slot.use), static_cast<int32_t>(slot.row));
  }

  void wait_for_nothing() {
    never_.clear();
    for (int32_t number = 0; number < used_; ++number) {
      Slot& slot = look_.directory.slot(number);
      slot.queued = 0;
      if (!uses_buckets() || (slot.use & kInWindow) == 0) wait_without_use(number);
    }
  }

  // Brings what a row of the batch will need near: its word in the directory, then its slot where
  // it stays there without a next use.
  void prefetch_row(const CoveredBatch& batch, int64_t i) {
    if (i + 2 * kPlanDistance < batch.count) {
      look_.directory.prefetch(record_of(batch, i + 2 * kPlanDistance).id);
    }
    if (i + kPlanDistance < batch.count) {
      const UseRecord& record = record_of(batch, i + kPlanDistance);
      look_.directory.prefetch_slot(record.id, record.following < 0);
    }
  }

  const UseRecord& record_of(const CoveredBatch& batch, int64_t i) const {
    return look_.record(batch.first + static_cast<uint32_t>(i));
  }

  void add_miss(const UseRecord& record, uint32_t& use) {
    const int32_t cell = buffer_.cell_of(use);
    look_.retire(record, use);
    misses_.push_back({record.id, record.position, record.next(), cell, 0, -1, use});
  }

  // Hits get their new next use. Misses are collected, and become candidates beside the residents:
  // those with a next use in its bucket, the others by their keys, the smallest leaves first.
  void serve(const CoveredBatch& batch, CachePlan& plan) {
    plan.hits.reserve(static_cast<std::size_t>(2 * batch.count));
    for (int64_t i = 0; i < batch.count; ++i) {
      prefetch_row(batch, i);
      const UseRecord& record = record_of(batch, i);
      const bool waits = record.following >= 0 && uses_buckets();
      if (waits) look_.batch(record.following).waiting.push_back(record.id);
      const int32_t slot = look_.directory.slot_of(record.id);
      if (slot >= 0) {
        plan.hits.push_back(record.position);
        plan.hits.push_back(slot);
        if (waits) continue;
        look_.retire(record, look_.directory.slot(slot).use);
        wait_without_use(slot);
        continue;
      }
      uint32_t& use = look_.directory.use(record.id);
      const auto number = static_cast<uint32_t>(misses_.size());
      add_miss(record, use);
      if (waits) {
        use = kMiss + number;
      } else {
        keys_.push_back({key_of(record.id, look_.importance(use)), number});
      }
    }
  }

  static uint64_t key_of(int32_t row, uint16_t importance) {
    return uint64_t{importance} << 32 | static_cast<uint32_t>(~row);
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
    const auto number_of_keys = static_cast<int64_t>(keys_.size());
    for (; leaving > number_of_keys && leave_first_resident(); --leaving) {
    }
    if (leaving == 0) return 0;
    // Most misses go before the residents that are left: what need not be in order is not sorted.
    const uint64_t first = first_resident();
    auto key = keys_.begin();
    auto rest = std::partition(key, keys_.end(), [=](const MissKey& k) { return k.key < first; });
    if (rest - key > leaving) rest = key;
    std::sort(rest, keys_.end(), [](const MissKey& a, const MissKey& b) { return a.key < b.key; });
    for (; leaving > 0; --leaving) {
      if (key != keys_.end() && key->key < first_resident()) {
        misses_[(key++)->miss].slot = -1;
      } else if (!leave_first_resident()) {
        break;
      }
    }
    return leaving;
  }

  bool leave_first_resident() {
    const uint64_t first = first_resident();
    if (never_.empty()) return false;
    const auto row = static_cast<int32_t>(~first);
    never_.pop(static_cast<uint16_t>(first >> 32));
    leave(row, uses_buckets() ? kNever : look_.next_use(look_.directory.use(row)));
    return true;
  }

  // The key of the resident in never_ that leaves first, or one that is beyond all. Entries that
  // are out of date go.
  uint64_t first_resident() {
    while (!never_.empty()) {
      const uint16_t least = never_.top_importance();
      const int32_t row = never_.top_row(least);
      if (const int32_t number = look_.directory.slot_of(row); number >= 0) {
        Slot& slot = look_.directory.slot(number);
        if (!uses_buckets() || (slot.use & kInWindow) == 0) return key_of(row, least);
        slot.queued = 0;
      }
      never_.pop(least);
    }
    return std::numeric_limits<uint64_t>::max();
  }

  void leave(int32_t row, int32_t next) {
    RowDirectory& directory = look_.directory;
    if (const int32_t slot = directory.slot_of(row); slot >= 0) {
      victims_.push_back({slot, row, next});
      directory.leave(row);
    } else {
      misses_[directory.use(row) - kMiss].slot = -1;
    }
  }

  void serve_by_queue(const CoveredBatch& batch, CachePlan& plan) {
    std::vector<int32_t> evicted;
    for (int64_t i = 0; i < batch.count; ++i) {
      prefetch_row(batch, i);
      const UseRecord& record = record_of(batch, i);
      uint32_t& use = look_.directory.use(record.id);
      if (queue_->access(record.id, evicted)) {
        look_.retire(record, use);
        plan.hits.push_back(record.position);
        plan.hits.push_back(look_.directory.slot_of(record.id));
      } else {
        add_miss(record, use);
      }
    }
    for (int32_t row : evicted) {
      const int32_t slot = look_.directory.slot_of(row);
      if (slot < 0) continue;  // it entered in this batch
      victims_.push_back({slot, row, look_.next_use(look_.directory.use(row))});
      look_.directory.leave(row);
    }
    for (Miss& miss : misses_) miss.slot = queue_->contains(miss.row) ? 0 : -1;
  }

  // Gives the entering rows their slots, in order of position: those of the victims ascending, then
  // unused ones. Rows that do not enter go back to their cell, or nowhere.
  void fill_slots(PlanLog& log) {
    std::sort(victims_.begin(), victims_.end(),
              [](const Victim& a, const Victim& b) { return a.slot < b.slot; });
    RowDirectory& directory = look_.directory;
    auto victim = victims_.begin();
    for (Miss& miss : misses_) {
      if (miss.slot < 0) {
        if (miss.next != kNever) directory.use(miss.row) = miss.use;
        continue;
      }
      int32_t before = -1;
      if (victim != victims_.end()) {
        before = static_cast<int32_t>(directory.slot(victim->slot).row);
        miss.slot = (victim++)->slot;
      } else {
        miss.slot = used_++;
      }
      log.changes.push_back({miss.slot, before, miss.row});
      directory.enter(miss.row, miss.slot, miss.use);
      if (miss.next == kNever || !uses_buckets()) wait_without_use(miss.slot);
    }
    if (!rebuild_never_) return;
    rebuild_never_ = false;
    wait_for_nothing();
  }

  void list_misses(CachePlan& plan) {
    order_.clear();  // id, number of the miss
    for (std::size_t i = 0; i < misses_.size(); ++i) {
      if (misses_[i].cell < 0) order_.push_back(uint64_t(misses_[i].row) << 32 | i);
    }
    sort_numbered(order_, static_cast<uint32_t>(num_rows_), scratch_);
    plan.reads.reserve(order_.size());
    for (const uint64_t at : order_) {
      misses_[at & 0xffffffff].staging = static_cast<int32_t>(plan.reads.size());
      plan.reads.push_back(static_cast<int64_t>(at >> 32));
    }
    plan.fills.reserve(3 * order_.size());
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
    const int64_t planned_before = planned();
    look_.reset(batch);
    RowDirectory& directory = look_.directory;
    for (int64_t undone = planned_before; undone > batch; --undone) {
      const PlanLog& log = logs_.back();
      for (const Change& change : log.changes) directory.leave(change.after);
      for (const Change& change : log.changes) {
        if (change.before >= 0) {
          directory.enter(change.before, change.slot, directory.use(change.before));
        } else {
          --used_;
        }
      }
      Journal::undo(log.journal);
      logs_.pop_back();
    }
    if (!queue_) wait_for_nothing();
  }

  const int64_t num_rows_;
  const int64_t capacity_;
  const CachePolicy policy_;
  const int64_t window_;
  int64_t far_ = kNever;  // batches; rows whose next use is farther leave before all others

  Lookahead look_;
  VictimBuffer buffer_;
  NeverQueue never_;  // residents without a next use, and entries that are out of date
  bool rebuild_never_ = false;
  std::unique_ptr<CacheQueue> queue_;
  int32_t used_ = 0;  // slots that hold a row
  std::vector<int32_t> prefilled_;
  std::deque<PlanLog> logs_;  // of the plans that are not committed

  std::vector<Miss> misses_;  // of the plan in the making, in order of position
  std::vector<Victim> victims_;
  std::vector<MissKey> keys_;  // of the misses without a next use
  std::vector<uint64_t> order_, scratch_;
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
