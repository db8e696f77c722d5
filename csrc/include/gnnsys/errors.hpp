#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

namespace gnnsys {

// Throws std::invalid_argument, which Python sees as a gnnsys.errors.ArgumentError. Likewise a
// std::out_of_range is seen as a RowIndexError.
inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// A limit of the system is in the way. The text says what was asked for, what the system answered
// and the way out; Python sees a gnnsys.errors.ResourceError.
class ResourceError : public std::runtime_error {
 public:
  ResourceError(const std::string& wanted, int code, const std::string& way_out)
      : std::runtime_error(wanted + " (" + std::strerror(code) + "); " + way_out), code_(code) {}

  int code() const { return code_; }

 private:
  int code_;
};

// A file could not be read at a byte: an errno, or 0 where it ended too early. Python sees what
// gnnsys.memory.table_file.read_error makes of it.
class ReadError : public std::runtime_error {
 public:
  ReadError(std::string path, int64_t place, int code)
      : std::runtime_error(path + ": cannot be read at byte " + std::to_string(place)),
        path_(std::move(path)),
        place_(place),
        code_(code) {}

  const std::string& path() const { return path_; }
  int64_t place() const { return place_; }
  int code() const { return code_; }

 private:
  std::string path_;
  int64_t place_;
  int code_;
};

// What a thread needs before it may throw. The C++ library allocates it when the thread first does,
// and ends the process where there is no memory: threads of ours have it from the beginning.
inline void prepare_to_throw() { (void)std::current_exception(); }

inline ResourceError too_few_threads(int wanted, int made, int code) {
  return {std::to_string(wanted) + (wanted == 1 ? " thread was" : " threads were") +
              " asked for and " + std::to_string(made) + " could be started",
          code,
          "give fewer (threads=1 starts none), or raise the limit that is reached: pids.max of the "
          "control group, ulimit -u, or ulimit -v"};
}

}  // namespace gnnsys
