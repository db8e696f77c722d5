#include "cache/queues.hpp"

#include <algorithm>
#include <deque>

#include "cache/row_directory.hpp"

namespace gnnsys {
namespace {

constexpr int32_t kNone = -1;

// A queue of nodes; the tail is the oldest.
struct List {
  int32_t head = kNone;
  int32_t tail = kNone;
  int32_t size = 0;
};

// Nodes 0 .. nodes - 1, each of one row or free, in doubly linked lists.
class LinkedQueue : public CacheQueue {
 public:
  LinkedQueue(int64_t num_rows, int64_t capacity, int64_t more_nodes = 0)
      : capacity_(static_cast<int32_t>(capacity)),
        node_of_(num_rows),
        nodes_(capacity + more_nodes) {
    for (auto node = static_cast<int32_t>(nodes_.size()); node-- > 0;) link(free_, node);
    journal.take();
  }

  bool access(int32_t row, std::vector<int32_t>& evicted) final {
    if (contains(row)) {
      use(node_of(row));
      return true;
    }
    if (capacity_ > 0) admit(row, evicted);
    return false;
  }

  void fill(const std::vector<int32_t>& rows) override {
    for (int32_t row : rows) insert(filled_list(), row);
    journal.take();
  }

  bool contains(int32_t row) const override { return node_of_[row] != 0; }
  int64_t bytes() const override {
    return node_of_.bytes() + static_cast<int64_t>(nodes_.capacity() * sizeof(Node));
  }

 protected:
  struct Node {
    int32_t newer;
    int32_t older;
    int32_t row;
    int32_t uses;  // what it means is up to the policy
  };

  virtual List& filled_list() = 0;
  virtual void use(int32_t node) = 0;  // of a resident
  virtual void admit(int32_t row, std::vector<int32_t>& evicted) = 0;

  int32_t node_of(int32_t row) const { return node_of_[row] - 1; }  // kNone where there is none
  const Node& at(int32_t node) const { return nodes_[node]; }
  void set_uses(int32_t node, int32_t uses) { journal.set(nodes_[node].uses, uses); }
  void set(int32_t& place, int32_t value) { journal.set(place, value); }

  void link(List& list, int32_t node) {
    set(nodes_[node].newer, kNone);
    set(nodes_[node].older, list.head);
    set(list.head == kNone ? list.tail : nodes_[list.head].newer, node);
    set(list.head, node);
    set(list.size, list.size + 1);
  }

  void unlink(List& list, int32_t node) {
    const auto [newer, older, row, uses] = nodes_[node];
    set(newer == kNone ? list.head : nodes_[newer].older, older);
    set(older == kNone ? list.tail : nodes_[older].newer, newer);
    set(list.size, list.size - 1);
  }

  void move(List& from, List& to, int32_t node) {
    unlink(from, node);
    link(to, node);
  }

  // The row's node is the newest of the list.
  int32_t insert(List& list, int32_t row) {
    const int32_t node = free_.head;
    move(free_, list, node);
    set(nodes_[node].row, row);
    set(nodes_[node].uses, 0);
    set(node_of_[row], node + 1);
    return node;
  }

  int32_t remove(List& list, int32_t node) {
    const int32_t row = nodes_[node].row;
    move(list, free_, node);
    set(node_of_[row], 0);
    return row;
  }

  const int32_t capacity_;

 private:
  ZeroedArray<int32_t> node_of_;  // node + 1
  std::vector<Node> nodes_;
  List free_;
};

class Lru final : public LinkedQueue {
  using LinkedQueue::LinkedQueue;

  List& filled_list() override { return queue_; }
  void use(int32_t node) override { move(queue_, queue_, node); }
  void admit(int32_t row, std::vector<int32_t>& evicted) override {
    if (queue_.size == capacity_) evicted.push_back(remove(queue_, queue_.tail));
    insert(queue_, row);
  }

  List queue_;
};

// `uses` is the number of the list that a node is in: the rows used uses + 1 times.
class Lfu final : public LinkedQueue {
 public:
  using LinkedQueue::LinkedQueue;

  void fill(const std::vector<int32_t>& rows) override {
    LinkedQueue::fill(rows);
    size_ = static_cast<int32_t>(rows.size());
  }

 private:
  List& filled_list() override { return lists_[0]; }

  void use(int32_t node) override {
    const int32_t uses = at(node).uses;
    if (uses + 1 == static_cast<int32_t>(lists_.size())) lists_.emplace_back();
    move(lists_[uses], lists_[uses + 1], node);
    set_uses(node, uses + 1);
    if (least_ == uses && lists_[uses].size == 0) set(least_, uses + 1);
  }

  void admit(int32_t row, std::vector<int32_t>& evicted) override {
    if (size_ == capacity_) {
      evicted.push_back(remove(lists_[least_], lists_[least_].tail));
    } else {
      set(size_, size_ + 1);
    }
    insert(lists_[0], row);
    set(least_, 0);
  }

  std::deque<List> lists_{1};  // grows without moving what the journal points to
  int32_t least_ = 0;          // the first list that is not empty
  int32_t size_ = 0;
};

// `uses` is 1 for a row that was visited.
class Sieve final : public LinkedQueue {
  using LinkedQueue::LinkedQueue;

  List& filled_list() override { return queue_; }
  void use(int32_t node) override {
    if (at(node).uses == 0) set_uses(node, 1);
  }
  void admit(int32_t row, std::vector<int32_t>& evicted) override {
    if (queue_.size == capacity_) evicted.push_back(evict());
    insert(queue_, row);
  }

  int32_t evict() {
    int32_t node = hand_ == kNone ? queue_.tail : hand_;
    while (at(node).uses != 0) {
      set_uses(node, 0);
      node = at(node).newer == kNone ? queue_.tail : at(node).newer;
    }
    set(hand_, at(node).newer);
    return remove(queue_, node);
  }

  List queue_;
  int32_t hand_ = kNone;
};

// `uses` counts to 3; kGhost marks a row that is remembered only.
class S3Fifo final : public LinkedQueue {
 public:
  S3Fifo(int64_t num_rows, int64_t capacity)
      : LinkedQueue(num_rows, capacity, capacity - small_share(capacity)),
        small_share_(small_share(capacity)),
        ghosts_(static_cast<int32_t>(capacity) - small_share_) {}

  void use(int32_t node) override {
    if (at(node).uses < kMost) set_uses(node, at(node).uses + 1);
  }

  void admit(int32_t row, std::vector<int32_t>& evicted) override {
    while (small_.size + main_.size == capacity_) evict(evicted);
    if (const int32_t ghost = node_of(row); ghost != kNone) {
      move(ghost_, main_, ghost);
      set_uses(ghost, 0);
    } else {
      insert(small_, row);
    }
  }

  bool contains(int32_t row) const override {
    const int32_t node = node_of(row);
    return node != kNone && at(node).uses != kGhost;
  }

 private:
  static constexpr int32_t kGhost = -1;
  static constexpr int32_t kMost = 3;

  static int32_t small_share(int64_t capacity) {
    return static_cast<int32_t>(capacity == 0 ? 0 : std::max<int64_t>(1, capacity / 10));
  }

  List& filled_list() override { return main_; }

  void evict(std::vector<int32_t>& evicted) {
    if (small_.size >= small_share_) {
      const int32_t node = small_.tail;
      if (at(node).uses > 1) {
        move(small_, main_, node);
        set_uses(node, 0);
        return;
      }
      evicted.push_back(at(node).row);
      if (ghosts_ == 0) {
        remove(small_, node);
        return;
      }
      if (ghost_.size == ghosts_) remove(ghost_, ghost_.tail);
      move(small_, ghost_, node);
      set_uses(node, kGhost);
    } else {
      const int32_t node = main_.tail;
      if (at(node).uses > 0) {
        move(main_, main_, node);
        set_uses(node, at(node).uses - 1);
      } else {
        evicted.push_back(remove(main_, node));
      }
    }
  }

  const int32_t small_share_;
  const int32_t ghosts_;
  List small_, main_, ghost_;
};

}  // namespace

std::unique_ptr<CacheQueue> make_cache_queue(CachePolicy policy, int64_t num_rows,
                                             int64_t capacity) {
  if (policy == CachePolicy::kLru) return std::make_unique<Lru>(num_rows, capacity);
  if (policy == CachePolicy::kLfu) return std::make_unique<Lfu>(num_rows, capacity);
  if (policy == CachePolicy::kSieve) return std::make_unique<Sieve>(num_rows, capacity);
  if (policy == CachePolicy::kS3Fifo) return std::make_unique<S3Fifo>(num_rows, capacity);
  return nullptr;
}

}  // namespace gnnsys
