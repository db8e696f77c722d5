#include "sampler/uniform.hpp"

#include <algorithm>

namespace gnnsys {
namespace {

#define GNNSYS_KERNEL "sampler/uniform_kernel.inl"
#include "each_isa.inl"

}  // namespace

template <class Index>
UniformKernels<Index> choose_uniform_kernels(Isa isa) {
  (void)isa;
  return {GNNSYS_CHOOSE(isa, measure), GNNSYS_CHOOSE(isa, pick), GNNSYS_CHOOSE(isa, read<Index>)};
}

template UniformKernels<int32_t> choose_uniform_kernels(Isa);
template UniformKernels<int64_t> choose_uniform_kernels(Isa);

}  // namespace gnnsys
