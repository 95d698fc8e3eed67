// A device table on its way into shared memory, for every kernel that looks weights up. Device code only.
#pragma once

#include "block.h"

namespace nft {
namespace cuda {

// The table in shared memory, and whether it is a constant one (csrc/cpu/program.h finds out the same way on the host).
// To be called by all kThreads threads of a block.
template <int kThreads>
__device__ generic::Table staged_table(const Program& p, float* shared) {
  const int levels = generic::table_levels(p);
  const float std = p.table[levels];
  bool constant = true;
  __syncthreads();  // nobody reads the table before any more
  for (int i = (int)threadIdx.x; i < generic::table_entries(p); i += kThreads) {
    const float value = p.table[i];
    shared[i] = value;
    constant = constant && generic::is_constant(i, value, std, levels);
  }
  return {shared, levels, __syncthreads_and(constant) != 0};
}

}  // namespace cuda
}  // namespace nft
