// The input's gradient of csrc/cuda/fused.h.
#include "fused.h"

#include "fused/launch.h"

namespace nft {
namespace cuda {

bool can_fuse_gradient(const Fused& f) { return groups_divide(f) && gradient_coordinates_fit(f); }

cudaError_t fused_gradient(const Fused& f, cudaStream_t stream) {
  return can_fuse_gradient(f) ? launch<GradientSizes>(f, stream) : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace nft
