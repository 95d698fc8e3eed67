// The sampler on CUDA behind plain pointers and a stream: nothing here waits for the device, allocates, or reads a
// value from it, so every call may be captured in a CUDA graph. Pointers belong to the current device; lists of
// programs are the host's and need not outlive the call.
#pragma once

#include <cuda_runtime_api.h>

#include "block.h"

namespace nft {
namespace cuda {

// Step s of Eq. 4 of each program's weights (weight, n and weight_bits are read) into step [count]; NaN where a weight
// is not finite. Two launches for every 56 layers.
cudaError_t weight_step_many(const Program* programs, int count, float* step, cudaStream_t stream);

// The same for one weight [n], into step [].
cudaError_t weight_step(const float* weight, int64_t n, int weight_bits, float* step, cudaStream_t stream);

// Packed codes [n] of weight [n], int16 for weight_bits <= 15, else int32.
cudaError_t quantize(const float* weight, int64_t n, const float* step, int weight_bits, void* codes, cudaStream_t stream);

// Programmed weights [chips, n] of every layer. All layers go to the same chips: equal keys and chips, or
// cudaErrorInvalidValue. One launch for every 56 layers of the same path and output type, where their tables fit shared
// memory.
cudaError_t program_many(const Program* programs, int count, cudaStream_t stream);

// The same for one layer.
cudaError_t program(const Program& p, cudaStream_t stream);

}  // namespace cuda
}  // namespace nft
