#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gnnsys/io/file_reader.hpp"

namespace gnnsys {

// The neighbours of a relation that lie in a file: blocks of some are in memory, the others are
// read past the page cache when they are drawn, the distinct pages of up to 2^18 at a time
// together.
class NeighborFile {
 public:
  static constexpr int64_t kBlock = 4096;  // bytes of neighbours that are in memory together

  struct Counts {
    int64_t kept, read;              // neighbours served from memory, from the file
    int64_t requests, pages, bytes;  // of the file, for those
    int64_t nanoseconds_waited;
  };

  // A file that is open for reading, with `size` neighbours from byte `offset` on: int32_t, or
  // int64_t if `wide`. The path is for errors.
  NeighborFile(std::string path, int handle, int64_t size, int64_t offset, bool wide,
               ReaderOptions options, BackendFactory backend);

  // Brings blocks into memory, in the place of those there: numbers that ascend strictly below
  // blocks(). Not while others gather. Throws ReadError, std::invalid_argument.
  void keep(std::span<const int64_t> blocks);

  // Blocks that may be kept: all but a last one that the file does not fill.
  int64_t blocks() const { return size_ / per_block_; }

  // neighbor[i] = the one at position[i], which is below size(). Index is that of the file. May be
  // called from several threads. Throws ReadError, ResourceError.
  template <class Index>
  void gather(const int64_t* position, int64_t n, Index* neighbor);

  int64_t size() const { return size_; }
  bool wide() const { return wide_; }
  Counts counts() const;

 private:
  template <class Index>
  void gather_piece(const int64_t* position, int64_t n, Index* neighbor);
  [[noreturn]] void fail(const ReadFault& fault) const;

  const std::string path_;
  const int64_t size_;
  const bool wide_;
  const int64_t per_block_;
  FileReader blocks_, neighbors_;
  std::vector<int32_t> slot_;   // (blocks and a rest) place in memory, or -1
  std::shared_ptr<char> kept_;  // (slots, kBlock)
  std::atomic<int64_t> served_{0}, read_{0};
};

// How often a run draws from each block of a relation's neighbours, up to a factor: (blocks), in
// the order of the file. A node v is expanded about as often as importance[v] says, which is a
// rank; without any, as the square root of its in-edges. It then draws `fanout` neighbours at most.
// indptr ascends from 0.
void weigh_blocks(std::span<const int64_t> indptr, std::span<const uint16_t> importance,
                  int64_t fanout, int64_t per_block, std::span<double> weight);

}  // namespace gnnsys
