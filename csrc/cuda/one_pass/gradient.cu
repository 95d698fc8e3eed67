// The input's gradient of one_pass.h.
#include "cuda/one_pass/one_pass.h"

#include "cuda/one_pass/launch.h"

namespace nft {
namespace cuda {

bool gradient_fits_one_pass(const OnePassProduct& f) { return groups_divide(f) && gradient_coordinates_fit(f); }

cudaError_t one_pass_gradient_partition(const OnePassProduct& f, Partition* partition) {
  int count = 0;
  const cudaError_t error = gradient_fits_one_pass(f) ? multiprocessors(&count) : cudaErrorInvalidValue;
  if (error == cudaSuccess) *partition = partition_for<GradientSizes>(f, count);
  return error;
}

cudaError_t one_pass_gradient(const OnePassProduct& f, const Partition& partition, float* sums, cudaStream_t stream) {
  return gradient_fits_one_pass(f) ? launch<GradientSizes>(f, partition, sums, stream) : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace nft
