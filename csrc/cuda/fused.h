// Noisy convolution and linear layer, and the gradient with respect to their input, in one pass on CUDA, behind plain
// pointers and a stream: programmed weights are generated tile by tile in shared memory and multiplied at once, and
// never reach memory. Nothing here waits for the device, allocates, or reads a value from it, so every call may be
// captured in a CUDA graph. Pointers belong to the current device, of compute capability 8.0 or more.
#pragma once

#include <cuda_runtime_api.h>

#include "fused/split.h"

namespace nft {
namespace cuda {

// How a product is dealt to a device, and the memory that it wants for sums of parts of its tiles.
struct Plan {
  Split split;
  int64_t floats;
};

// y of csrc/cuda/fused/shape.h, dealt as fused_plan says for the current device; `sums` is memory [plan.floats] at a
// multiple of 16 bytes, undefined before and afterwards, or null where that is none. cudaErrorInvalidValue where
// can_fuse says no; nothing is launched where y has no elements.
//
// x_type decides the product: bfloat16 and float16 weights are the programmed ones rounded to nearest even, sums are
// float32; float32 is multiplied in three tf32 products (about 22 bits; an input that is not finite gives NaN).
cudaError_t fused_plan(const Fused& f, Plan* plan);
cudaError_t fused(const Fused& f, const Plan& plan, float* sums, cudaStream_t stream);

// The same epilogue in place on results that are in memory, whose bias is in them already. The residual lies as they
// do; its strides are not used.
cudaError_t finish(const Results& r, const Epilogue& e, cudaStream_t stream);

// Whether 32-bit coordinates hold the shape (strides and whole tensors may be of any size), and groups divide the
// channels.
bool can_fuse(const Fused& f);

// The product for the input's gradient, chip by chip: a Fused as csrc/cuda/fused/gradient.h reads it. No atomics, here
// as there: the same bits every time.
cudaError_t fused_gradient_plan(const Fused& f, Plan* plan);
cudaError_t fused_gradient(const Fused& f, const Plan& plan, float* sums, cudaStream_t stream);
bool can_fuse_gradient(const Fused& f);

// The second launch of a product whose tiles are split.
cudaError_t add_parts(const Fused& f, const Plan& plan, const float* sums, cudaStream_t stream);

// Of the current device; it waits for nothing.
cudaError_t multiprocessors(int* count);

}  // namespace cuda
}  // namespace nft
