#pragma once

// What checks of kernels need of a GPU, where nvcc compiles them: simt/check.hpp has the rest.
// Memory is managed, so that both sides reach it; every launch is waited for.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

namespace simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline void require(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
  std::exit(1);
}

inline void* allocate(std::size_t bytes) {
  void* area = nullptr;
  require(cudaMallocManaged(&area, bytes > 0 ? bytes : 1), "cudaMallocManaged");
  return area;
}

inline void release(void* area) { require(cudaFree(area), "cudaFree"); }

template <class... P>
void launch(Dim3 grid, Dim3 block, void (*kernel)(P...), std::type_identity_t<P>... arguments) {
  kernel<<<dim3(grid.x, grid.y, grid.z), dim3(block.x, block.y, block.z)>>>(arguments...);
  require(cudaGetLastError(), "a launch");
  require(cudaDeviceSynchronize(), "a kernel");
}

}  // namespace simt
