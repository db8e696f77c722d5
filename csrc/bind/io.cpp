#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bind.hpp"
#include "gnnsys/io/file_reader.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace gnnsys {
namespace {

using Offsets = nb::ndarray<nb::numpy, const int64_t, nb::ndim<1>>;
using Fault = std::optional<std::tuple<int, int64_t, int>>;  // file, byte, errno

Fault to_tuple(const std::optional<ReadFault>& fault) {
  if (!fault) return std::nullopt;
  return std::make_tuple(fault->part, fault->offset, fault->code);
}

// f() with the interpreter free meanwhile; what the user should know of it afterwards is logged.
template <class F>
auto told(const F& f) {
  auto result = [&] {
    nb::gil_scoped_release release;
    return f();
  }();
  if (const std::string notice = take_notice(); !notice.empty()) {
    nb::module_::import_("logging")
        .attr("getLogger")("gnnsys.memory")
        .attr("warning")(notice.c_str());
  }
  return result;
}

// A job as Python holds it: let go of, it is cancelled.
class Job {
 public:
  explicit Job(std::shared_ptr<ReadJob> job) : job_(std::move(job)) {}
  ~Job() {
    if (job_) job_->cancel();
  }
  Job(Job&&) = default;

  Fault wait() {
    nb::gil_scoped_release release;
    return to_tuple(job_->wait());
  }

  void cancel() { job_->cancel(); }
  bool cancelled() const { return job_->cancelled(); }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(job_->data()); }
  std::size_t requests() const { return job_->plan().requests.size(); }
  int64_t pages() const { return job_->plan().pages; }
  int64_t bytes_read() const { return job_->bytes_read(); }

  Offsets offsets() const {
    const auto& offsets = job_->plan().offsets;
    const std::size_t shape[1] = {offsets.size()};
    return Offsets(offsets.data(), 1, shape, hold(job_));
  }

 private:
  std::shared_ptr<ReadJob> job_;
};

class Reader {
 public:
  Reader(const std::vector<std::tuple<int, int64_t, int64_t>>& files, int64_t row_bytes, bool uring,
         int depth, int threads, int64_t largest_request) {
    std::vector<FilePart> parts;
    for (const auto& [handle, rows, offset] : files) parts.push_back({handle, rows, offset});
    reader_ = std::make_unique<FileReader>(std::move(parts), row_bytes,
                                           ReaderOptions{depth, threads, largest_request},
                                           uring ? make_uring_backend : make_thread_backend);
  }

  Job start(Vector<const int64_t> ids) {
    return told([&] { return Job(reader_->start(ids.data(), static_cast<int64_t>(ids.size()))); });
  }

  std::tuple<int64_t, Fault> gather(uintptr_t ids, int id_bytes, int64_t n, uintptr_t out) {
    char* const to = reinterpret_cast<char*>(out);
    const auto outcome = told([&] {
      return id_bytes == 4 ? reader_->gather(reinterpret_cast<const int32_t*>(ids), n, to)
                           : reader_->gather(reinterpret_cast<const int64_t*>(ids), n, to);
    });
    return {outcome.bad, to_tuple(outcome.fault)};
  }

  Fault read_range(int64_t first, int64_t count, uintptr_t out) {
    return to_tuple(
        told([&] { return reader_->read_range(first, count, reinterpret_cast<char*>(out)); }));
  }

  auto counts() const { return reader_->counts(); }
  auto direct() const { return reader_->direct(); }

 private:
  std::unique_ptr<FileReader> reader_;
};

}  // namespace

void bind_io(nb::module_& m) {
  m.attr("has_uring") = has_uring();
  m.def("find_uring_fault", &find_uring_fault, "depth"_a,
        "The errno with which the kernel refuses a ring of that depth, or 0.");

  nb::class_<Job>(m, "ReadJob", "Rows of a file that are being read.")
      .def("wait", &Job::wait, "None, or the file, the byte and the errno of what failed.")
      .def("cancel", &Job::cancel, "Makes no more reads.")
      .def_prop_ro("cancelled", &Job::cancelled)
      .def_prop_ro("address", &Job::address, "Of the memory that the rows are read to.")
      .def_prop_ro("offsets", &Job::offsets, nb::rv_policy::automatic,
                   "Bytes from there to each row.")
      .def_prop_ro("requests", &Job::requests)
      .def_prop_ro("pages", &Job::pages)
      .def_prop_ro("bytes_read", &Job::bytes_read);

  nb::class_<Reader>(m, "FileReader", "Reads rows of files past the page cache, many at once.")
      .def(nb::init<const std::vector<std::tuple<int, int64_t, int64_t>>&, int64_t, bool, int, int,
                    int64_t>(),
           "files"_a, "row_bytes"_a, "uring"_a, "depth"_a = 128, "threads"_a = 1,
           "largest_request"_a = int64_t{64} << 10,
           "files: handle, rows and bytes before the first row of each.")
      .def("start", &Reader::start, "ids"_a, "Begins to read rows whose ids ascend strictly.")
      .def("gather", &Reader::gather, "ids"_a, "id_bytes"_a, "n"_a, "out"_a,
           "Copies rows; returns -1 or the first position outside, and what failed.")
      .def("read_range", &Reader::read_range, "first"_a, "count"_a, "out"_a,
           "Copies rows one after another; returns what failed.")
      .def("counts", &Reader::counts, "Rows, requests, pages, bytes, nanoseconds waited.")
      .def("direct", &Reader::direct, "Whether each file is read past the page cache.");
}

}  // namespace gnnsys
