// Reads of files through backends that fail, stop short or are busy, and through the real ones.
#include "gnnsys/io/file_reader.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "check.hpp"
#include "tests.hpp"

namespace gnnsys::test {
namespace {

constexpr int64_t kRows = 1200;
constexpr int64_t kOffset = 128;
constexpr int64_t kPage = 4096;

unsigned char byte_at(int64_t row, int64_t column) {
  return static_cast<unsigned char>((row * 2654435761u + column * 40503u) >> 7);
}

// A file of kRows rows that goes with its owner.
class TableFile {
 public:
  explicit TableFile(int64_t row_bytes) : file_(std::tmpfile()) {
    CHECK(file_);
    const std::string head(kOffset, 'h');
    std::fwrite(head.data(), 1, head.size(), file_);
    std::vector<unsigned char> row(static_cast<std::size_t>(row_bytes));
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < row_bytes; ++j) row[static_cast<std::size_t>(j)] = byte_at(i, j);
      std::fwrite(row.data(), 1, row.size(), file_);
    }
    std::fflush(file_);
  }
  ~TableFile() { std::fclose(file_); }
  int handle() const { return fileno(file_); }

 private:
  std::FILE* file_;
};

// What a read comes to instead of its own result; called once for each read, in order.
using Spoil = std::function<int64_t(int64_t number, const DiskRead& read, int64_t result)>;

// Reads at once, when it is asked for what is done, and lets `spoil` change the result. A result
// that is changed leaves memory as it was beyond it. `reversed` tells of the last read first.
class SpoiltBackend final : public ReadBackend {
 public:
  SpoiltBackend(int capacity, Spoil spoil, bool reversed)
      : capacity_(capacity), spoil_(std::move(spoil)), reversed_(reversed) {}

  int capacity() const override { return capacity_; }

  void push(const DiskRead& read) override { reads_.push_back(read); }

  void finish(int least, std::vector<DiskReadDone>& done) override {
    CHECK(static_cast<std::size_t>(least) <= reads_.size());
    CHECK(static_cast<int>(reads_.size()) <= capacity_);
    for (const DiskRead& read : reads_) {
      const auto length = static_cast<std::size_t>(read.length);
      // At a page's boundary, as direct reads ask for.
      const std::unique_ptr<char, decltype(&std::free)> data(
          static_cast<char*>(std::aligned_alloc(kPage, (length + kPage - 1) / kPage * kPage)),
          std::free);
      const int64_t got = pread(read.handle, data.get(), length, read.offset);
      const int64_t result = spoil_(number_++, read, got);
      if (result > 0) std::memcpy(read.to, data.get(), static_cast<std::size_t>(result));
      done.push_back({read.tag, result});
    }
    reads_.clear();
    if (reversed_) std::reverse(done.begin(), done.end());
  }

 private:
  const int capacity_;
  const Spoil spoil_;
  const bool reversed_;
  int64_t number_ = 0;
  std::vector<DiskRead> reads_;
};

BackendFactory spoilt(Spoil spoil, bool reversed = false) {
  return [spoil, reversed](int depth) {
    return std::make_unique<SpoiltBackend>(depth, spoil, reversed);
  };
}

std::vector<int64_t> some_ids(int64_t step) {
  std::vector<int64_t> ids;
  for (int64_t id = 1; id < kRows; id += 1 + (id * 7 + 3) % step) ids.push_back(id);
  if (ids.back() != kRows - 1) ids.push_back(kRows - 1);
  return ids;
}

void check_rows(const ReadJob& job, const std::vector<int64_t>& ids, int64_t row_bytes) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const char* const row = job.data() + job.plan().offsets[i];
    for (int64_t j = 0; j < row_bytes; ++j) {
      CHECK(static_cast<unsigned char>(row[j]) == byte_at(ids[i], j));
    }
  }
}

void check_reads(const BackendFactory& backend, int64_t row_bytes, int depth) {
  const TableFile file(row_bytes);
  FileReader reader({{file.handle(), kRows, kOffset}}, row_bytes, {depth, 2, 4 * kPage}, backend);
  std::vector<std::shared_ptr<ReadJob>> jobs;
  for (int64_t step = 2; step < 40; step += 9) {
    const auto ids = some_ids(step);
    jobs.push_back(reader.start(ids.data(), static_cast<int64_t>(ids.size())));
  }
  std::size_t place = 0;
  for (int64_t step = 2; step < 40; step += 9) {
    const auto ids = some_ids(step);
    CHECK(!jobs[place]->wait());
    check_rows(*jobs[place], ids, row_bytes);
    std::set<int64_t> pages;
    for (const int64_t id : ids) {
      const int64_t begin = kOffset + id * row_bytes;
      for (int64_t page = begin / kPage; page <= (begin + row_bytes - 1) / kPage; ++page) {
        pages.insert(page);
      }
    }
    CHECK(jobs[place]->plan().pages == static_cast<int64_t>(pages.size()));
    ++place;
  }
  // Duplicates, in no order.
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < 2 * kRows; ++i) ids.push_back(static_cast<int32_t>(i * 1237 % kRows));
  std::vector<char> out(ids.size() * static_cast<std::size_t>(row_bytes));
  const auto outcome = reader.gather(ids.data(), static_cast<int64_t>(ids.size()), out.data());
  CHECK(outcome.bad == -1 && !outcome.fault);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (int64_t j = 0; j < row_bytes; ++j) {
      const std::size_t at = i * static_cast<std::size_t>(row_bytes) + static_cast<std::size_t>(j);
      CHECK(static_cast<unsigned char>(out[at]) == byte_at(ids[i], j));
    }
  }
  std::vector<char> range(static_cast<std::size_t>((kRows - 5) * row_bytes));
  CHECK(!reader.read_range(2, kRows - 5, range.data()));
  for (std::size_t i = 0; i < range.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    CHECK(static_cast<unsigned char>(range[i]) == byte_at(2 + at / row_bytes, at % row_bytes));
  }
}

// A thread whose read is done goes on with one that waits, without whoever hands them out: one call
// is answered by more reads than there are threads, of which none is lost or made twice.
void check_threads_go_on() {
  const TableFile file(kPage);
  const std::unique_ptr<char, decltype(&std::free)> data(
      static_cast<char*>(std::aligned_alloc(kPage, 6 * kPage)), std::free);
  const auto backend = make_thread_backend(3);
  CHECK(backend->capacity() == 6);
  std::vector<DiskReadDone> done;
  for (int round = 0; round < 50; ++round) {
    for (uint64_t tag = 0; tag < 6; ++tag) {
      const auto place = static_cast<int64_t>(tag);
      backend->push(
          {file.handle(), data.get() + place * kPage, kPage, kOffset + place * kPage, tag});
    }
    done.clear();
    backend->finish(round % 6 + 1, done);
    if (done.size() < 6) backend->finish(6 - static_cast<int>(done.size()), done);
    std::set<uint64_t> tags;
    for (const DiskReadDone& each : done) {
      CHECK(each.result == kPage);
      tags.insert(each.tag);
    }
    CHECK(done.size() == 6 && tags.size() == 6);
    for (int64_t row = 0; row < 6; ++row) {
      CHECK(static_cast<unsigned char>(data.get()[row * kPage + 9]) == byte_at(row, 9));
    }
  }
}

void check_spoilt_reads() {
  const auto as_it_is = [](int64_t, const DiskRead&, int64_t result) { return result; };
  // The kernel may stop anywhere, and past the page cache at any page.
  const auto short_reads = [](int64_t number, const DiskRead&, int64_t result) {
    return result <= 1 ? result : 1 + (number * 911) % result;
  };
  const auto short_pages = [](int64_t, const DiskRead&, int64_t result) {
    return std::min(result, kPage);
  };
  const auto busy = [](int64_t number, const DiskRead&, int64_t result) -> int64_t {
    return number % 3 == 0 ? -EAGAIN : number % 3 == 1 ? -EINTR : result;
  };
  // A file system may open a file for direct reads and then refuse them.
  const auto refused = [](int64_t, const DiskRead& read, int64_t result) -> int64_t {
    return fcntl(read.handle, F_GETFL) & O_DIRECT ? -EINVAL : result;
  };
  for (const Spoil& spoil : std::vector<Spoil>{as_it_is, short_reads, short_pages, busy, refused}) {
    check_reads(spoilt(spoil), 500, 7);
  }
}

void check_faults() {
  const TableFile file(kPage);
  const auto ids = some_ids(5);
  const auto n = static_cast<int64_t>(ids.size());
  for (const int64_t failing : {0, 1, 100}) {
    FileReader reader({{file.handle(), kRows, 0}}, kPage, {4, 1, kPage},
                      spoilt([failing](int64_t number, const DiskRead&, int64_t result) -> int64_t {
                        return number == failing ? -EIO : result;
                      }));
    const auto job = reader.start(ids.data(), n);
    const auto after = reader.start(ids.data(), n);
    const auto fault = job->wait();
    CHECK(fault && fault->code == EIO && fault->part == 0);
    CHECK(fault->offset == ids[static_cast<std::size_t>(failing)] * kPage);
    CHECK(!after->wait());  // what follows is read
  }
  // The file ends in the middle of what is needed.
  FileReader longer({{file.handle(), kRows + 10, 0}}, kPage, {4, 1, 16 * kPage},
                    make_thread_backend);
  const std::vector<int64_t> last = {kRows - 1, kRows, kRows + 1};
  const auto fault = longer.start(last.data(), 3)->wait();
  CHECK(fault && fault->code == 0 && fault->offset / kPage == kRows);
  // Of several reads that fail, the first in the file is told of, whichever ends first.
  for (const bool reversed : {false, true}) {
    FileReader failing({{file.handle(), kRows, 0}}, kPage, {4, 1, kPage},
                       spoilt([](int64_t number, const DiskRead&,
                                 int64_t result) -> int64_t { return number < 2 ? result : -EIO; },
                              reversed));
    CHECK(failing.start(ids.data(), n)->wait()->offset == ids[2] * kPage);
  }
  // A read that is refused for ever, and a backend that cannot read at all.
  FileReader stuck({{file.handle(), kRows, 0}}, kPage, {4, 1, kPage},
                   spoilt([](int64_t, const DiskRead&, int64_t) -> int64_t { return -EAGAIN; }));
  CHECK(stuck.start(ids.data(), 3)->wait()->code == EAGAIN);
  FileReader broken({{file.handle(), kRows, 0}}, kPage, {4, 1, kPage},
                    spoilt([](int64_t number, const DiskRead&, int64_t result) -> int64_t {
                      if (number == 9) {
                        throw std::system_error(ENOMEM, std::generic_category());
                      }
                      return result;
                    }));
  CHECK(broken.start(ids.data(), n)->wait()->code == ENOMEM);
  CHECK(broken.start(ids.data(), n)->wait()->code == ENOMEM);
  // Ids that do not ascend within the table are refused.
  for (const std::vector<int64_t>& wrong :
       std::vector<std::vector<int64_t>>{{-1}, {kRows}, {3, 3}, {3, 2}}) {
    message_of<std::invalid_argument>(
        [&] { stuck.start(wrong.data(), static_cast<int64_t>(wrong.size())); });
  }
}

void check_parts_and_cancelling() {
  const TableFile file(kPage);
  // The same file thrice: rows of one part are those of the others.
  FileReader reader(
      {{file.handle(), 10, kOffset}, {file.handle(), 0, 0}, {file.handle(), 20, kOffset}}, kPage,
      {3, 1, 16 * kPage}, make_thread_backend);
  const std::vector<int64_t> ids = {0, 8, 9, 10, 11, 29};
  const auto job = reader.start(ids.data(), 6);
  CHECK(!job->wait());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const char* const row = job->data() + job->plan().offsets[i];
    CHECK(static_cast<unsigned char>(row[5]) == byte_at(ids[i] < 10 ? ids[i] : ids[i] - 10, 5));
  }
  // Jobs that are cancelled, forgotten or left when the reader goes, from several threads.
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&reader, &ids, t] {
      for (int round = 0; round < 50; ++round) {
        const auto mine = reader.start(ids.data(), 6);
        if (round % 3 == t % 3) mine->cancel();
        if (round % 2 == 0) CHECK(!mine->wait());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::shared_ptr<ReadJob> left;
  {
    FileReader gone({{file.handle(), kRows, kOffset}}, kPage, {2, 1, kPage}, make_thread_backend);
    const auto all = some_ids(2);
    left = gone.start(all.data(), static_cast<int64_t>(all.size()));
  }
  CHECK(!left->wait() && !left->cancelled());  // a reader that goes waits for it
}

// Threads of this process, and the rings that it has open.
struct Held {
  int threads = 0;
  int rings = 0;
};

Held held() {
  Held found;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::ifstream(task.path() / "comm") >> name;
    // The kernel's workers of a ring come and go.
    found.threads += !name.empty() && !name.starts_with("iou-");
  }
  for (const auto& handle : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;  // the handle that lists them
    const auto target = std::filesystem::read_symlink(handle.path(), gone).string();
    found.rings += contains(target, "io_uring");
  }
  return found;
}

// Many tables have one queue, which goes with the last; one that closes leaves the others alone.
void check_shared_queue(const BackendFactory& backend, int depth) {
  constexpr int64_t kRowBytes = 1000;
  const TableFile file(kRowBytes);
  const auto open = [&] {
    return std::make_unique<FileReader>(std::vector<FilePart>{{file.handle(), kRows, kOffset}},
                                        kRowBytes, ReaderOptions{depth, 2, 4 * kPage}, backend);
  };
  const auto ids = some_ids(9);
  const auto n = static_cast<int64_t>(ids.size());
  const Held before = held();
  std::vector<std::unique_ptr<FileReader>> readers;
  readers.push_back(open());
  CHECK(!readers[0]->start(ids.data(), n)->wait());
  const Held one = held();
  CHECK(one.threads > before.threads);
  for (int i = 0; i < 63; ++i) {
    readers.push_back(open());
    CHECK(!readers.back()->start(ids.data(), n)->wait());
    CHECK(std::get<1>(readers.back()->counts()) == std::get<1>(readers[0]->counts()));
  }
  CHECK(held().threads == one.threads && held().rings == one.rings);
  // Each thread reads through one table and closes another in the middle of its reads.
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t round = 0; round < 15; ++round) {
        std::unique_ptr<FileReader>& closed = readers[4 + 15 * t + round];
        const auto other = closed->start(ids.data(), n);
        const auto job = readers[t]->start(ids.data(), n);
        closed = nullptr;
        CHECK(!job->wait() && !other->wait());
        check_rows(*job, ids, kRowBytes);
        check_rows(*other, ids, kRowBytes);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  readers.clear();
  CHECK(held().threads == before.threads && held().rings == before.rings);
}

}  // namespace

void test_file_reader() {
  for (const int64_t row_bytes : {1, 100, 4096, 10000}) {
    check_reads(make_thread_backend, row_bytes, 5);
    if (find_uring_fault(16) == 0) check_reads(make_uring_backend, row_bytes, 16);
  }
  check_threads_go_on();
  check_spoilt_reads();
  check_faults();
  check_parts_and_cancelling();
  check_shared_queue(make_thread_backend, 5);
  if (find_uring_fault(16) == 0) check_shared_queue(make_uring_backend, 16);
}

}  // namespace gnnsys::test
