// The layer's product of csrc/cuda/fused.h.
#include "fused.h"

#include "fused/launch.h"

namespace nft {
namespace cuda {

bool can_fuse(const Fused& f) { return groups_divide(f) && coordinates_fit(f); }

cudaError_t fused(const Fused& f, cudaStream_t stream) {
  return can_fuse(f) ? launch<Sizes>(f, stream) : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace nft
