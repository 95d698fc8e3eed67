// The input's gradient of csrc/cuda/fused.h.
#include "fused.h"

#include "fused/launch.h"

namespace nft {
namespace cuda {

bool can_fuse_gradient(const Fused& f) { return groups_divide(f) && gradient_coordinates_fit(f); }

cudaError_t fused_gradient_plan(const Fused& f, Plan* plan) {
  int count = 0;
  const cudaError_t error = can_fuse_gradient(f) ? multiprocessors(&count) : cudaErrorInvalidValue;
  if (error == cudaSuccess) *plan = plan_for<GradientSizes>(f, count);
  return error;
}

cudaError_t fused_gradient(const Fused& f, const Plan& plan, float* sums, cudaStream_t stream) {
  return can_fuse_gradient(f) ? launch<GradientSizes>(f, plan, sums, stream) : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace nft
