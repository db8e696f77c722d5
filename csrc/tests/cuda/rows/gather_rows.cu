// What is compiled of gather_rows.cuh for GPUs.
#include "cuda/rows/gather_rows.cuh"

namespace gnnsys::cuda {

#define GATHER(Word, lanes, Out, Id)                                                     \
  template __global__ void gather_rows<Word, lanes, Out, Id>(const char*, i64, i64, i64, \
                                                             const Id*, i64, char*, u32*);
#define COPIES(Word)               \
  GATHER(Word, 0, Copy<Word>, i64) \
  GATHER(Word, 1, Copy<Word>, i64) \
  GATHER(Word, 4, Copy<Word>, i64) \
  GATHER(Word, 32, Copy<Word>, i64)

COPIES(u8)
COPIES(u16)
COPIES(u32)
COPIES(uint2)
COPIES(uint4)
GATHER(uint4, 2, Copy<uint4>, i64)
GATHER(uint4, 8, Copy<uint4>, i64)
GATHER(uint4, 16, Copy<uint4>, i64)
GATHER(uint4, 32, Copy<uint4>, i32)
GATHER(uint4, 0, Copy<uint4>, i32)

#define DECODES(Stored, Delivered)                                                        \
  template __global__ void gather_rows<uint4, 0, Decode<uint4, Stored, Delivered>, i64>(  \
      const char*, i64, i64, i64, const i64*, i64, char*, u32*);                          \
  template __global__ void gather_rows<uint4, 16, Decode<uint4, Stored, Delivered>, i64>( \
      const char*, i64, i64, i64, const i64*, i64, char*, u32*);

DECODES(Half, float)
DECODES(BFloat, float)
DECODES(float, Half)
DECODES(float, BFloat)
DECODES(float, double)
DECODES(double, float)
DECODES(i8, float)
DECODES(u8, float)
DECODES(i16, float)
DECODES(i32, float)

}  // namespace gnnsys::cuda
