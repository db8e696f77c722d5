// What is compiled of the sums over neighbours and over pairs for GPUs.
#include "cuda/graph/dot_neighbors.cuh"
#include "cuda/graph/pair_sums.cuh"
#include "cuda/graph/sum_neighbors.cuh"

namespace gnnsys::cuda {

#define DOTS(Value, Id, vector, Put)                                                               \
  template __global__ void dot_edges<Value, Id, vector, Put>(Edges<Id>, Rows<Value>, const Value*, \
                                                             Put, u32*);
#define SUMS(Value, Id, vector)                                                                  \
  template __global__ void sum_neighbors<Value, Id, vector>(Edges<Id>, Rows<Value>, i64, Value*, \
                                                            u32*);                               \
  DOTS(Value, Id, vector, WeightDerivative<Value>)
#define PAIRS(Value, Id, vector)            \
  DOTS(Value, Id, vector, PairTerms<Value>) \
  DOTS(Value, Id, vector, PairFactors<Value>)

SUMS(float, i64, 1)
SUMS(float, i64, 2)
SUMS(float, i64, 4)
SUMS(float, i32, 4)
SUMS(double, i64, 1)
SUMS(double, i64, 2)
SUMS(BFloat, i64, 1)
SUMS(BFloat, i64, 8)
SUMS(BFloat, i32, 8)
PAIRS(float, i32, 1)
PAIRS(float, i32, 4)
PAIRS(float, i64, 4)
PAIRS(double, i64, 2)

#define HUBS(Value, Id, vector)                                                                 \
  template __global__ void sum_hubs<Value, Id, vector, 256>(Edges<Id>, Rows<Value>, const i64*, \
                                                            const u32*, Value*, u32*);

HUBS(float, i64, 1)
HUBS(float, i64, 4)
HUBS(double, i32, 2)
HUBS(BFloat, i64, 8)

template __global__ void find_hubs<i32>(Edges<i32>, i64, i64*, u32*);
template __global__ void find_hubs<i64>(Edges<i64>, i64, i64*, u32*);

}  // namespace gnnsys::cuda
