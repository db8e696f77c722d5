// What is compiled of products with matrices by segment and of attention for GPUs.
#include "cuda/graph/edge_softmax.cuh"
#include "cuda/graph/segment_matmul.cuh"

namespace gnnsys::cuda {

#define PRODUCTS(Value, Id, vector, columns)                                         \
  template __global__ void segment_matmul<Value, Id, vector, columns>(               \
      IndexedRows<Value, Id>, const Stretch*, i64, const Value*, i64, Value*, u32*); \
  template __global__ void sum_outer_products<Value, Id, vector, columns>(           \
      IndexedRows<Value, Id>, const Stretch*, i64, const Value*, i64, Wide<Value>*, u32*);

PRODUCTS(float, i64, 4, 64)
PRODUCTS(BFloat, i32, 8, 16)
PRODUCTS(double, i64, 1, 64)

#define ATTENTION(Value, Id, Work)                                                                \
  template __global__ void softmax_targets<Value, Id, Work<Value>>(Edges<Id>, Scores<Value>, i64, \
                                                                   i64, i64, Work<Value>, u32*);  \
  template __global__ void softmax_hubs<Value, Id, 256, Work<Value>>(                             \
      Edges<Id>, Scores<Value>, i64, const i64*, const u32*, Work<Value>, u32*);

ATTENTION(float, i32, Softmax)
ATTENTION(double, i64, SoftmaxDerivative)

}  // namespace gnnsys::cuda
