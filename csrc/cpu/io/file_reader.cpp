#include "gnnsys/io/file_reader.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "io/queue.hpp"
#include "io/sorted_ids.hpp"

namespace gnnsys {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kPieceBytes = int64_t{16} << 20;  // staged at a time by gather and read_range
constexpr int64_t kScanRequest = int64_t{1} << 20;  // of a sequential read
constexpr int64_t kCopyBytes = int64_t{256} << 10;  // a smaller share is not worth a thread

int64_t page_down(int64_t byte) { return byte / kPage * kPage; }
int64_t page_up(int64_t byte) { return (byte + kPage - 1) / kPage * kPage; }

}  // namespace

ReadJob::ReadJob(ReadPlan plan, std::shared_ptr<char> staging, std::shared_ptr<FileHandles> files,
                 std::shared_ptr<ReadTotals> totals)
    : owner_(process_number()),
      plan_(std::move(plan)),
      staging_(std::move(staging)),
      files_(std::move(files)),
      totals_(std::move(totals)) {}

void ReadJob::finish() {
  // Not later: who waits for this may close its files then, and open others in their place.
  files_ = nullptr;
  std::lock_guard lock(mutex_);
  done_ = true;
  finished_.notify_all();
}

std::optional<ReadFault> ReadJob::wait() {
  if (owner_ != process_number()) {
    throw std::logic_error("these rows are being read by another process");
  }
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [&] { return done_; });
  totals_->nanoseconds_waited += (std::chrono::steady_clock::now() - start).count();
  return fault_;
}

// What one process reads with.
struct FileReader::Process {
  std::shared_ptr<ReadQueue> queue;
  std::shared_ptr<ReadTotals> totals;
};

FileReader::FileReader(std::vector<FilePart> parts, int64_t row_bytes, ReaderOptions options,
                       BackendFactory backend)
    : parts_(std::move(parts)),
      row_bytes_(row_bytes),
      options_(options),
      backend_(std::move(backend)),
      threads_(options.threads) {
  if (parts_.empty() || row_bytes < 0 || options.depth < 1 || options.largest_request < kPage) {
    throw std::invalid_argument("FileReader: no files, or sizes that are too small");
  }
  std::vector<int> handles;
  for (const FilePart& part : parts_) {
    if (part.num_rows < 0 || part.offset < 0) {
      throw std::invalid_argument("FileReader: a file with less than no rows");
    }
    struct stat status;
    if (fstat(part.handle, &status) != 0) {
      throw std::system_error(errno, std::generic_category(), "fstat");
    }
    const auto known = std::find(devices_.begin(), devices_.end(), status.st_dev);
    device_.push_back(static_cast<int>(known - devices_.begin()));
    if (known == devices_.end()) devices_.push_back(status.st_dev);
    handles.push_back(part.handle);
    first_row_.push_back(num_rows_);
    num_rows_ += part.num_rows;
  }
  first_row_.push_back(num_rows_);
  files_ = std::make_shared<FileHandles>(handles);
}

FileReader::~FileReader() = default;

FileReader::Process& FileReader::process() {
  return process_.get([this] {
    return std::make_unique<Process>(
        Process{share_queue(backend_, options_.depth, devices_), std::make_shared<ReadTotals>()});
  });
}

ReadPlan FileReader::plan_rows(const int64_t* ids, int64_t n) const {
  ReadPlan plan;
  plan.offsets.resize(static_cast<std::size_t>(n));
  int part = 0;
  int64_t begin = 0, end = 0;  // of the run of pages that grows, bytes of the file
  int64_t base = 0;            // where the run starts in the staging memory
  const auto close_run = [&] { plan_bytes(part, begin, end, options_.largest_request, plan); };
  for (int64_t i = 0; i < n; ++i) {
    if (ids[i] < (i ? ids[i - 1] + 1 : 0) || ids[i] >= num_rows_) {
      throw std::invalid_argument("ids do not ascend strictly within the rows");
    }
    const bool leaves = ids[i] >= first_row_[static_cast<std::size_t>(part) + 1];
    if (leaves) {
      close_run();
      while (ids[i] >= first_row_[static_cast<std::size_t>(part) + 1]) ++part;
      begin = end = 0;
      base = plan.staging_bytes;
    }
    const int64_t row = parts_[static_cast<std::size_t>(part)].offset +
                        (ids[i] - first_row_[static_cast<std::size_t>(part)]) * row_bytes_;
    const int64_t from = page_down(row), to = row_bytes_ ? page_up(row + row_bytes_) : from;
    if (from > end || begin == end) {
      close_run();
      begin = end = from;
      base = plan.staging_bytes;
    }
    end = std::max(end, to);
    plan.offsets[static_cast<std::size_t>(i)] = base + row - begin;
  }
  close_run();
  spread(plan);
  return plan;
}

// Adds reads of the pages [begin, end) of a file, none larger than `largest`.
void FileReader::plan_bytes(int part, int64_t begin, int64_t end, int64_t largest,
                            ReadPlan& plan) const {
  const FilePart& file = parts_[static_cast<std::size_t>(part)];
  const int64_t last = file.offset + file.num_rows * row_bytes_;
  for (int64_t from = begin; from < end; from += largest) {
    const int64_t length = std::min(largest, end - from);
    plan.requests.push_back(
        {part, from, length, std::min(length, last - from), plan.staging_bytes});
    plan.staging_bytes += length;
    plan.pages += length / kPage;
  }
}

// Lets the disks take turns, so that all of them are busy.
void FileReader::spread(ReadPlan& plan) const {
  if (devices_.size() == 1) return;
  std::vector<int64_t> turn(devices_.size(), 0);
  std::vector<std::pair<int64_t, ReadRequest>> order;
  order.reserve(plan.requests.size());
  for (const ReadRequest& request : plan.requests) {
    const int device = device_[static_cast<std::size_t>(request.part)];
    order.emplace_back(turn[static_cast<std::size_t>(device)]++, request);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t i = 0; i < order.size(); ++i) plan.requests[i] = order[i].second;
}

std::shared_ptr<ReadJob> FileReader::start_plan(ReadPlan plan, int64_t rows) {
  Process& mine = process();
  mine.totals->rows.fetch_add(rows, std::memory_order_relaxed);
  mine.totals->pages.fetch_add(plan.pages, std::memory_order_relaxed);
  const auto bytes = static_cast<std::size_t>(std::max<int64_t>(plan.staging_bytes, 1));
  auto staging = BufferPool::shared()->acquire(bytes, BufferPool::Use::staging);
  auto job = std::make_shared<ReadJob>(std::move(plan), std::move(staging), files_, mine.totals);
  mine.queue->add(job);
  return job;
}

std::shared_ptr<ReadJob> FileReader::start(const int64_t* ids, int64_t n) {
  return start_plan(plan_rows(ids, n), n);
}

template <class Id>
FileReader::Outcome FileReader::gather(const Id* ids, int64_t n, char* out) {
  for (int64_t i = 0; i < n; ++i) {
    if (ids[i] < 0 || ids[i] >= num_rows_) return {i, std::nullopt};
  }
  if (row_bytes_ == 0) return {};
  const SortedIds sorted(ids, n);
  const auto distinct = static_cast<int64_t>(sorted.ids.size());
  const int64_t grain = std::max<int64_t>(1, kCopyBytes / row_bytes_);
  // Where the piece ends whose pages fill the staging memory.
  const auto end_of_piece = [&](int64_t first) {
    int64_t end = first, bytes = 0, covered = 0;
    std::size_t part = 0;
    for (; end < distinct && (bytes < kPieceBytes || end == first); ++end) {
      const int64_t id = sorted.ids[static_cast<std::size_t>(end)];
      for (; id >= first_row_[part + 1]; ++part) covered = 0;
      const int64_t row = parts_[part].offset + (id - first_row_[part]) * row_bytes_;
      const int64_t last = page_up(row + row_bytes_);
      bytes += last - std::max(covered, page_down(row));
      covered = last;
    }
    return end;
  };
  int64_t next = end_of_piece(0);
  std::shared_ptr<ReadJob> ahead = distinct ? start(sorted.ids.data(), next) : nullptr;
  for (int64_t first = 0; first < distinct;) {
    const std::shared_ptr<ReadJob> job = std::move(ahead);
    const int64_t after = end_of_piece(next);
    if (next < distinct) ahead = start(sorted.ids.data() + next, after - next);
    if (auto fault = job->wait()) {
      if (ahead) ahead->cancel();
      return {-1, fault};
    }
    const auto& offsets = job->plan().offsets;
    const int64_t entry = sorted.starts[static_cast<std::size_t>(first)];
    const int64_t stop = sorted.starts[static_cast<std::size_t>(next)];
    parallel_for(threads_, stop - entry, grain, [&](int64_t begin, int64_t end) {
      for (int64_t e = entry + begin; e < entry + end; ++e) {
        const SortedIds::Entry& each = sorted.entries[static_cast<std::size_t>(e)];
        std::memcpy(out + each.position * row_bytes_,
                    job->data() + offsets[static_cast<std::size_t>(each.rank - first)],
                    static_cast<std::size_t>(row_bytes_));
      }
    });
    first = next;
    next = after;
  }
  return {};
}

template FileReader::Outcome FileReader::gather<int32_t>(const int32_t*, int64_t, char*);
template FileReader::Outcome FileReader::gather<int64_t>(const int64_t*, int64_t, char*);

std::optional<ReadFault> FileReader::read_range(int64_t first, int64_t count, char* out) {
  if (first < 0 || count < 0 || first + count > num_rows_) {
    throw std::invalid_argument("read_range: rows outside the table");
  }
  struct Piece {
    std::shared_ptr<ReadJob> job;
    int64_t skip;  // bytes before the first row
    int64_t bytes;
  };
  std::vector<Piece> under_way;
  const auto take = [&](Piece& piece) {
    const auto fault = piece.job->wait();
    if (!fault) {
      std::memcpy(out, piece.job->data() + piece.skip, static_cast<std::size_t>(piece.bytes));
      out += piece.bytes;
    }
    return fault;
  };
  for (std::size_t part = 0; part < parts_.size(); ++part) {
    const int64_t from = std::max(first, first_row_[part]);
    const int64_t to = std::min(first + count, first_row_[part + 1]);
    if (from >= to) continue;
    const int64_t start = parts_[part].offset - first_row_[part] * row_bytes_;
    const int64_t end = start + to * row_bytes_;
    for (int64_t byte = start + from * row_bytes_; byte < end;) {
      const int64_t stop = std::min(end, page_down(byte) + kPieceBytes);
      ReadPlan plan;
      plan_bytes(static_cast<int>(part), page_down(byte), page_up(stop), kScanRequest, plan);
      under_way.push_back({start_plan(std::move(plan), 0), byte - page_down(byte), stop - byte});
      byte = stop;
      if (under_way.size() < 3) continue;
      if (auto fault = take(under_way.front())) return fault;
      under_way.erase(under_way.begin());
    }
  }
  for (Piece& piece : under_way) {
    if (auto fault = take(piece)) return fault;
  }
  process().totals->rows.fetch_add(count, std::memory_order_relaxed);
  return std::nullopt;
}

std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> FileReader::counts() const {
  const Process* const mine = process_.find();
  if (!mine) return {};
  const ReadTotals& totals = *mine->totals;
  return {totals.rows, totals.requests, totals.pages, totals.bytes, totals.nanoseconds_waited};
}

std::vector<bool> FileReader::direct() const {
  std::vector<bool> found;
  for (int file = 0; file < files_->size(); ++file) found.push_back(files_->direct(file));
  return found;
}

}  // namespace gnnsys
