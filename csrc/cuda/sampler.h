// The sampler on CUDA behind plain pointers and a stream: nothing here waits for the device, allocates, or reads a value
// from it, so every call may be captured in a CUDA graph. Pointers belong to the current device.
#pragma once

#include <cuda_runtime_api.h>

#include "block.h"

namespace nft {
namespace cuda {

// Step s of Eq. 4 of weight [n] into step []; NaN where a weight is not finite.
cudaError_t weight_step(const float* weight, int64_t n, int weight_bits, float* step, cudaStream_t stream);

// Packed codes [n] of weight [n], int16 for weight_bits <= 15, else int32.
cudaError_t quantize(const float* weight, int64_t n, const float* step, int weight_bits, void* codes, cudaStream_t stream);

// Programmed weights [chips, n].
cudaError_t program(const Program& p, cudaStream_t stream);

}  // namespace cuda
}  // namespace nft
