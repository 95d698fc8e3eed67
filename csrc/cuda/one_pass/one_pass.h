// One-pass products on CUDA, behind plain pointers and a stream: a noisy convolution or linear layer, and the gradient
// with respect to its input. The kernel generates the noisy weights tile by tile in shared memory and multiplies them
// at once; they never reach memory.
//
// Nothing here waits for the GPU, allocates, or reads a value from it, so a CUDA graph can capture every call. Pointers
// point to memory of the current GPU, of compute capability 8.0 or more.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/one_pass/split.h"

namespace nft {
namespace cuda {

// How a product's tiles are split among thread blocks, and the memory for the sums of their parts.
struct Partition {
  Split split;
  int64_t floats;
};

// y of shape.h. one_pass_partition finds the partition for the current GPU. `sums` is scratch memory [partition.floats]
// at a multiple of 16 bytes, or null if floats is 0. The result is cudaErrorInvalidValue if fits_one_pass is false.
// Nothing is launched if y is empty.
//
// x_type decides how to multiply. In bfloat16 and float16 the weights are the programmed ones rounded to nearest even,
// and sums are float32. float32 takes three tf32 products (about 22 bits; an input that is not finite gives NaN).
cudaError_t one_pass_partition(const OnePassProduct& f, Partition* partition);
cudaError_t one_pass_product(const OnePassProduct& f, const Partition& partition, float* sums, cudaStream_t stream);

// The epilogue alone, in place on results in memory. The residual has their layout; its strides are not used.
cudaError_t run_epilogue(const Results& r, const Epilogue& e, cudaStream_t stream);

// Whether 32-bit coordinates hold the shape (strides and whole
// tensors may have any size) and groups divide the channels.
bool fits_one_pass(const OnePassProduct& f);

// The input's gradient, chip by chip: a OnePassProduct as gradient.h reads it. Like the product it uses no atomics, so
// it gives the same bits every time.
cudaError_t one_pass_gradient_partition(const OnePassProduct& f, Partition* partition);
cudaError_t one_pass_gradient(const OnePassProduct& f, const Partition& partition, float* sums, cudaStream_t stream);
bool gradient_fits_one_pass(const OnePassProduct& f);

// Adds up the parts of a product whose tiles are split: its second launch.
cudaError_t add_parts(const OnePassProduct& f, const Partition& partition, const float* sums, cudaStream_t stream);

// Of the current GPU, without waiting.
cudaError_t multiprocessors(int* count);

}  // namespace cuda
}  // namespace nft
