// The sampler on CUDA behind plain pointers and a stream. Nothing here waits for the GPU, allocates, or reads a value
// from it, so a CUDA graph can capture every call. Pointers point to memory of the current GPU; lists of programs are
// in host memory and need not outlive the call.
#pragma once

#include <cuda_runtime_api.h>

#include "core/scaling.h"
#include "cuda/sampler/four_weights.h"

namespace nft {
namespace cuda {

// Step s of Eq. 4 of each program's weights into step [count]; NaN if a weight is not finite. Reads weight, n and
// weight_bits. Two launches per 56 layers.
cudaError_t weight_step_many(const Program* programs, int count, float* step, cudaStream_t stream);

// The same for one weight [n], into step [].
cudaError_t weight_step(const float* weight, int64_t n, int weight_bits, float* step, cudaStream_t stream);

// Packed codes [n] of weight [n], int16 for weight_bits <= 15, else int32.
cudaError_t quantize(const float* weight, int64_t n, const float* step, int weight_bits, void* codes,
                     cudaStream_t stream);

// The step for codes [n] that a caller gives, into checked []: NaN if a code has more than weight_bits bits.
cudaError_t check_codes(const void* codes, int64_t n, int weight_bits, const float* step, float* checked,
                        cudaStream_t stream);

// Programmed weights [chips, n] of every layer. All layers must have the same keys and chips, else the result is
// cudaErrorInvalidValue. One launch per 56 layers of one kind (layer_batch.h).
cudaError_t program_many(const Program* programs, int count, cudaStream_t stream);

// The same for one layer.
cudaError_t program(const Program& p, cudaStream_t stream);

// ---- the same for one layer with several steps, in the order of core/scaling.h (step_runs.cu)

// The steps of weight [n]; NaN where a weight is not finite.
cudaError_t weight_steps(const float* weight, int64_t n, const Scaling& s, int weight_bits, float* steps,
                         cudaStream_t stream);

cudaError_t quantize_runs(const float* weight, int64_t n, const Scaling& s, const float* steps, int weight_bits,
                          void* codes, cudaStream_t stream);

// One code with more than weight_bits bits makes all of checked [steps] NaN.
cudaError_t check_codes_of_runs(const void* codes, int64_t n, const Scaling& s, int weight_bits, const float* steps,
                                float* checked, cudaStream_t stream);

// Stored in row-major order: taps and scale of `p` are not read.
cudaError_t program_runs(const Program& p, const Scaling& s, cudaStream_t stream);

}  // namespace cuda
}  // namespace nft
