// The layer's product of one_pass.h, and the epilogue alone for a result that torch has multiplied.
#include "cuda/one_pass/one_pass.h"

#include <algorithm>

#include "cuda/one_pass/launch.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

template <OutType kY>
__global__ void epilogue_eights_kernel(const Results r, const Epilogue e) {
  const uint32_t eight = blockIdx.x * blockDim.x + threadIdx.x;
  if (eight < (uint32_t)(r.count / 8)) epilogue_of_eight<kY>(r, e, eight);
}

template <OutType kY>
__global__ void epilogue_kernel(const Results r, const Epilogue e) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < r.count; at += step)
    epilogue_of_result<kY>(r, e, at);
}

}  // namespace

cudaError_t add_parts(const OnePassProduct& f, const Partition& partition, const float* sums, cudaStream_t stream) {
  return with_tile(f, [&](auto, auto wide) { return launch_add_parts<wide>(f, partition.split, sums, stream); });
}

cudaError_t multiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error : cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

cudaError_t run_epilogue(const Results& r, const Epilogue& e, cudaStream_t stream) {
  if (r.count == 0) return cudaSuccess;
  constexpr int kThreads = 256;
  const bool eights = epilogue_in_eights(r, e);
  // Without eights, threads stride over the results that exceed the grid.
  const unsigned grid = (unsigned)std::min<int64_t>((r.count / (eights ? 8 : 1) + kThreads - 1) / kThreads, 0x7fffffff);
  const auto launch = [&](auto one, auto eight) { (eights ? eight : one)<<<grid, kThreads, 0, stream>>>(r, e); };
  if (r.type == OutType::kBFloat16)
    launch(epilogue_kernel<OutType::kBFloat16>, epilogue_eights_kernel<OutType::kBFloat16>);
  else if (r.type == OutType::kFloat16)
    launch(epilogue_kernel<OutType::kFloat16>, epilogue_eights_kernel<OutType::kFloat16>);
  else
    launch(epilogue_kernel<OutType::kFloat32>, epilogue_eights_kernel<OutType::kFloat32>);
  return cudaGetLastError();
}

bool fits_one_pass(const OnePassProduct& f) { return groups_divide(f) && coordinates_fit(f); }

cudaError_t one_pass_partition(const OnePassProduct& f, Partition* partition) {
  int count = 0;
  const cudaError_t error = fits_one_pass(f) ? multiprocessors(&count) : cudaErrorInvalidValue;
  if (error == cudaSuccess) *partition = partition_for<Sizes>(f, count);
  return error;
}

cudaError_t one_pass_product(const OnePassProduct& f, const Partition& partition, float* sums, cudaStream_t stream) {
  return fits_one_pass(f) ? launch<Sizes>(f, partition, sums, stream) : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace nft
