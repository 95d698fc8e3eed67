// Copies a device table to shared memory, for every kernel that looks weights up. GPU code only.
#pragma once

#include "cuda/sampler/four_weights.h"

namespace nft {
namespace cuda {

// The table in shared memory, and whether it is constant (csrc/cpu/torch/program.h decides the same way). All kThreads
// threads of the thread block must call this.
template <int kThreads>
__device__ generic::Table shared_table(const Program& p, float* shared) {
  const int levels = generic::table_levels(p);
  const float std = p.table[levels];
  bool constant = true;
  __syncthreads();  // no thread still reads the previous table
  for (int i = (int)threadIdx.x; i < generic::table_entries(p); i += kThreads) {
    const float value = p.table[i];
    shared[i] = value;
    constant = constant && generic::is_constant(i, value, std, levels);
  }
  return {shared, levels, __syncthreads_and(constant) != 0};
}

}  // namespace cuda
}  // namespace nft
