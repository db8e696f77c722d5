// What is compiled of the sampler's kernels for GPUs; those that are no templates are, too.
#include "cuda/sampler/directory.cuh"
#include "cuda/sampler/prefix_sum.cuh"
#include "cuda/sampler/relabel.cuh"
#include "cuda/sampler/sample_neighbors.cuh"

namespace gnnsys::cuda {

#define SCANS(Count)                                           \
  template __global__ void sum_tiles(const Count*, i64, i64*); \
  template __global__ void scan_tiles(const Count*, i64, const i64*, i64*);

SCANS(i64)
SCANS(u8)

#define PICKS(by, size)                                                                          \
  template __global__ void by<size>(const i64*, const i64*, const u32*, const i64*, i64, Choice, \
                                    Stream, i64*);

PICKS(pick_by_lanes, 1)
PICKS(pick_by_lanes, 2)
PICKS(pick_by_lanes, 4)
PICKS(pick_by_lanes, 8)
PICKS(pick_by_lanes, 16)
PICKS(pick_by_lanes, 32)
PICKS(pick_by_block, 64)
PICKS(pick_by_block, 256)
PICKS(pick_by_block, 1024)
PICKS(pick_by_block, 2048)

#define IDS(Id)                                                                                    \
  template __global__ void read_neighbors(const Id*, i64, const i64*, const u32*, const i64*, i64, \
                                          Choice, i64, i64*, Id*, i64*, u32*);                     \
  template __global__ void add_nodes(NodeTable, const Id*, i64, i64, u32*, u32*);                  \
  template __global__ void place_new_nodes(NodeTable, const Id*, const u32*, const i64*, i64, i64, \
                                           i64*);                                                  \
  template __global__ void add_rows(NodeTable, const Id*, const i32*, i64, u32*);                  \
  template __global__ void remove_rows(NodeTable, const Id*, i64);                                 \
  template __global__ void find_slots(NodeTable, const Id*, i64, i32*);

IDS(i32)
IDS(i64)

}  // namespace gnnsys::cuda
