// The layer's product of csrc/cuda/fused.h, and the epilogue alone, for a product of the library's.
#include "fused.h"

#include <algorithm>

#include "fused/launch.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

template <OutType kY>
__global__ void finish_octets_kernel(const Results r, const Epilogue e) {
  const uint32_t octet = blockIdx.x * blockDim.x + threadIdx.x;
  if (octet < (uint32_t)(r.count / 8)) finish_octet<kY>(r, e, octet);
}

template <OutType kY>
__global__ void finish_kernel(const Results r, const Epilogue e) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < r.count; at += step) finish_result<kY>(r, e, at);
}

}  // namespace

cudaError_t add_parts(const Fused& f, const Plan& plan, const float* sums, cudaStream_t stream) {
  return with_tile(f, [&](auto, auto wide) { return launch_add_parts<wide>(f, plan.split, sums, stream); });
}

cudaError_t multiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error : cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

cudaError_t finish(const Results& r, const Epilogue& e, cudaStream_t stream) {
  if (r.count == 0) return cudaSuccess;
  constexpr int kThreads = 256;
  const bool octets = finish_in_octets(r, e);
  // One by one, threads stride over more.
  const unsigned grid = (unsigned)std::min<int64_t>((r.count / (octets ? 8 : 1) + kThreads - 1) / kThreads, 0x7fffffff);
  const auto launch = [&](auto one, auto eight) { (octets ? eight : one)<<<grid, kThreads, 0, stream>>>(r, e); };
  if (r.type == OutType::kBFloat16)
    launch(finish_kernel<OutType::kBFloat16>, finish_octets_kernel<OutType::kBFloat16>);
  else if (r.type == OutType::kFloat16)
    launch(finish_kernel<OutType::kFloat16>, finish_octets_kernel<OutType::kFloat16>);
  else
    launch(finish_kernel<OutType::kFloat32>, finish_octets_kernel<OutType::kFloat32>);
  return cudaGetLastError();
}

bool can_fuse(const Fused& f) { return groups_divide(f) && coordinates_fit(f); }

cudaError_t fused_plan(const Fused& f, Plan* plan) {
  int count = 0;
  const cudaError_t error = can_fuse(f) ? multiprocessors(&count) : cudaErrorInvalidValue;
  if (error == cudaSuccess) *plan = plan_for<Sizes>(f, count);
  return error;
}

cudaError_t fused(const Fused& f, const Plan& plan, float* sums, cudaStream_t stream) {
  return can_fuse(f) ? launch<Sizes>(f, plan, sums, stream) : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace nft
