// The layer's product of csrc/cuda/fused.h, and the epilogue alone, for a product of the library's.
#include "fused.h"

#include <algorithm>

#include "fused/launch.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

template <OutType kY>
__global__ void finish_kernel(const Results r, const Epilogue e) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < r.count; at += step) finish_result<kY>(r, e, at);
}

// Tiles of all number types are alike here.
template <bool kWide>
__global__ void add_parts_kernel(const __grid_constant__ Fused f, const __grid_constant__ Sizes sizes,
                                 const __grid_constant__ Tiling tiling, const __grid_constant__ Split split,
                                 const float* sums) {
  typedef Tile<OutType::kFloat32, kWide> T;
  const int64_t count = tiling.count * (sums_of_tile<T>() / 4), step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step) {
    if (f.y_type == OutType::kBFloat16)
      generic::add_parts<T, OutType::kBFloat16>(f, sizes, tiling, split, sums, at);
    else if (f.y_type == OutType::kFloat16)
      generic::add_parts<T, OutType::kFloat16>(f, sizes, tiling, split, sums, at);
    else
      generic::add_parts<T, OutType::kFloat32>(f, sizes, tiling, split, sums, at);
  }
}

template <bool kWide>
cudaError_t launch_add_parts(const Fused& f, const Split& split, const float* sums, cudaStream_t stream) {
  typedef Tile<OutType::kFloat32, kWide> T;
  constexpr int kThreads = 64;  // few, for many thread blocks: there are few results
  const Sizes sizes = sizes_of(f);
  const Tiling tiling = tiling_of(f, sizes, T::kRows, T::kColumns);
  const int64_t count = tiling.count * (sums_of_tile<T>() / 4);
  const unsigned grid = (unsigned)std::min<int64_t>((count + kThreads - 1) / kThreads, 0x7fffffff);
  add_parts_kernel<kWide><<<grid, kThreads, 0, stream>>>(f, sizes, tiling, split, sums);
  return cudaGetLastError();
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
  // Threads stride over more.
  const unsigned grid = (unsigned)std::min<int64_t>((r.count + kThreads - 1) / kThreads, 0x7fffffff);
  if (r.type == OutType::kBFloat16)
    finish_kernel<OutType::kBFloat16><<<grid, kThreads, 0, stream>>>(r, e);
  else if (r.type == OutType::kFloat16)
    finish_kernel<OutType::kFloat16><<<grid, kThreads, 0, stream>>>(r, e);
  else
    finish_kernel<OutType::kFloat32><<<grid, kThreads, 0, stream>>>(r, e);
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
