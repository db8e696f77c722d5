#pragma once

#include <cstdint>
#include <span>

#include "gnnsys/thread_pool.hpp"

namespace gnnsys {

// What generated graphs are made of: edges of R-MAT and random ids, each a pure function of a key
// and a number. tests/unit/test_rmat.py has the reference; a change of any value changes every
// graph that was generated before.

// R-MAT draws kRmatLevels levels of the quadrant recursion at once, by the alias method, from one
// random word. Outcome k of a draw has the row bits k / 16 and the column bits k % 16.
inline constexpr int kRmatLevels = 4;
inline constexpr int kRmatOutcomes = 1 << 2 * kRmatLevels;
inline constexpr int kRmatMaxScale = 40;

// Draws edges from number `first` on, as many as fit into source and target. edge_key: of the
// edges' random words; id_key: of the ids that nodes get; scale: log2 of the nodes, 1 to
// kRmatMaxScale; alias (kRmatOutcomes): threshold << 8 | other outcome. Index is int32_t (scale <
// 32) or int64_t. Throws std::invalid_argument for other numbers.
template <class Index>
void draw_rmat_edges(uint64_t edge_key, uint64_t id_key, int scale, std::span<const uint32_t> alias,
                     int64_t first, std::span<Index> source, std::span<Index> target,
                     const ThreadPool& threads);

// Maps ids in place by the bijection of [0, num_ids) that the key gives, or by its inverse. Throws
// std::invalid_argument unless 1 <= num_ids <= 2**62, std::out_of_range for an id that is outside;
// the ids before it are then mapped.
void permute_ids(uint64_t key, int64_t num_ids, bool inverse, std::span<int64_t> ids);

}  // namespace gnnsys
