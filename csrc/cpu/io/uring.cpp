#include <cerrno>
#include <string>
#include <system_error>

#include "gnnsys/errors.hpp"
#include "gnnsys/io/backend.hpp"

#ifdef GNNSYS_URING
#include <liburing.h>

#include <algorithm>
#endif

namespace gnnsys {

#ifdef GNNSYS_URING
namespace {

// Completions wait for the thread that reads instead of interrupting it; kernels before 6.1 do not
// know that, so the flags are tried and then left out.
constexpr unsigned kFlags[] = {
#if defined(IORING_SETUP_DEFER_TASKRUN) && defined(IORING_SETUP_SINGLE_ISSUER)
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
#endif
    0};

int make_ring(io_uring& ring, int depth) {
  int code = -EINVAL;
  for (const unsigned flags : kFlags) {
    code = io_uring_queue_init(static_cast<unsigned>(depth), &ring, flags);
    if (code != -EINVAL) break;
  }
  return code;
}

class UringBackend final : public ReadBackend {
 public:
  explicit UringBackend(int depth) : depth_(depth), done_(2 * static_cast<std::size_t>(depth)) {
    const int code = make_ring(ring_, depth);
    if (code < 0) {
      throw ResourceError("an io_uring queue of depth " + std::to_string(depth) + " was asked for",
                          -code,
                          "raise the number of open files (ulimit -n) or of locked memory (ulimit "
                          "-l), or read with threads (storage='pread')");
    }
  }

  ~UringBackend() override { io_uring_queue_exit(&ring_); }

  int capacity() const override { return depth_; }

  void push(const DiskRead& read) override {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    io_uring_prep_read(entry, read.handle, read.to, static_cast<unsigned>(read.length),
                       static_cast<uint64_t>(read.offset));
    entry->user_data = read.tag;
  }

  void finish(int least, std::vector<DiskReadDone>& done) override {
    for (;;) {
      const int code = io_uring_submit_and_wait(&ring_, static_cast<unsigned>(least));
      if (code < 0 && code != -EINTR && code != -EAGAIN && code != -EBUSY) {
        throw std::system_error(-code, std::generic_category(), "io_uring_enter");
      }
      const unsigned got =
          io_uring_peek_batch_cqe(&ring_, done_.data(), static_cast<unsigned>(done_.size()));
      for (unsigned i = 0; i < got; ++i) done.push_back({done_[i]->user_data, done_[i]->res});
      io_uring_cq_advance(&ring_, got);
      least -= static_cast<int>(got);
      if (least <= 0) return;
    }
  }

 private:
  const int depth_;
  io_uring ring_{};
  std::vector<io_uring_cqe*> done_;
};

}  // namespace

std::unique_ptr<ReadBackend> make_uring_backend(int depth) {
  return std::make_unique<UringBackend>(depth);
}

bool has_uring() { return true; }

int find_uring_fault(int depth) {
  io_uring ring{};
  const int code = make_ring(ring, depth);
  if (code < 0) return -code;
  // The first kernels with io_uring lack the plain read.
  io_uring_probe* const probe = io_uring_get_probe_ring(&ring);
  const bool reads = probe && io_uring_opcode_supported(probe, IORING_OP_READ);
  io_uring_free_probe(probe);
  io_uring_queue_exit(&ring);
  return reads ? 0 : ENOSYS;
}

#else

std::unique_ptr<ReadBackend> make_uring_backend(int) {
  throw ResourceError("io_uring was asked for", ENOSYS, "install liburing-dev and build again");
}

bool has_uring() { return false; }

int find_uring_fault(int) { return ENOSYS; }

#endif

}  // namespace gnnsys
