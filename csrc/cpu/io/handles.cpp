#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "gnnsys/errors.hpp"
#include "gnnsys/io/backend.hpp"

namespace gnnsys {
namespace {

int duplicate(int handle) {
  const int copy = fcntl(handle, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) {
    throw ResourceError("a file is opened twice more to be read past the page cache", errno,
                        "raise the number of open files (ulimit -n), or keep fewer open: one file "
                        "takes three");
  }
  return copy;
}

// Opens the same file anew: O_DIRECT belongs to what was opened, not to the handle. By its handle,
// since another file may stand at its path by now.
int open_past_cache(int handle) {
  const std::string path = "/proc/self/fd/" + std::to_string(handle);
  return open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
}

}  // namespace

FileHandles::FileHandles(const std::vector<int>& handles) : direct_(handles.size()) {
  const std::size_t count = handles.size();
  all_.reserve(2 * count);
  try {
    for (const int handle : handles) {
      all_.push_back(duplicate(handle));
      posix_fadvise(all_.back(), 0, 0, POSIX_FADV_RANDOM);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const int past = open_past_cache(all_[i]);
      direct_[i] = past >= 0;
      all_.push_back(past >= 0 ? past : duplicate(all_[i]));
    }
  } catch (...) {
    for (const int handle : all_) close(handle);
    throw;
  }
}

FileHandles::~FileHandles() {
  for (const int handle : all_) close(handle);
}

}  // namespace gnnsys
