// How many thread blocks a launch of the sampler gets.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

namespace nft {
namespace cuda {

// As many thread blocks as the current GPU holds at once (`resident` per multiprocessor): `x` for the weights, and if
// these are few, `y` for the chips. `works`: rounds of a thread block's threads that all weights take.
inline cudaError_t grid_for(int64_t works, int64_t chips, int resident, dim3* grid) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t most = std::max<int64_t>(1, (int64_t)multiprocessors * resident);
  const int64_t x = std::max<int64_t>(1, std::min(works, most));
  const int64_t y = std::max<int64_t>(1, std::min<int64_t>({chips, most / x, 65535}));
  *grid = dim3((unsigned)x, (unsigned)y);
  return error;
}

}  // namespace cuda
}  // namespace nft
