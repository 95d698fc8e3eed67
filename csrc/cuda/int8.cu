// The products of 8-bit numbers of csrc/cuda/fused.h, and what rounds their input.
#include <algorithm>

#include "fused/launch.h"

namespace nft {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = kVector * kThreads;  // numbers of an image that one thread block looks at, about

int64_t pieces_of(const Images& m) { return std::max<int64_t>(1, (m.size + kPiece - 1) / kPiece); }

unsigned grid_for(int64_t blocks) { return (unsigned)std::min<int64_t>(blocks, 0x7fffffff); }  // they stride over more

// The largest of what a thread block's threads have found, for its thread 0.
__device__ uint32_t largest_of_team(uint32_t mine, uint32_t& ours) {
  __syncthreads();  // nobody reads the last one any more
  if (threadIdx.x == 0) ours = 0;
  __syncthreads();
  mine = __reduce_max_sync(0xffffffffu, mine);
  if (threadIdx.x % 32 == 0) atomicMax(&ours, mine);
  __syncthreads();
  return ours;
}

// Pieces of images, and last the layer's unit. Bit patterns of magnitudes are ordered like the magnitudes.
template <OutType kX>
__global__ void __launch_bounds__(kThreads, 8)
    measure_images_kernel(const __grid_constant__ Images m, const __grid_constant__ Program p, float* unit, int64_t pieces) {
  __shared__ uint32_t ours;
  const int64_t count = m.images * pieces;
  for (int64_t at = blockIdx.x; at <= count; at += gridDim.x) {
    uint32_t mine = 0;
    if (at == count) {
      for (int q = (int)threadIdx.x; q < 1 << p.weight_bits; q += kThreads)
        mine = max(mine, bits_of(reach_of_code(devices_of(p), q)));
      mine = largest_of_team(mine, ours);
      if (threadIdx.x == 0) *unit = weight_unit(*p.step, reach_of_all(devices_of(p), float_of(mine)));
      continue;
    }
    const int64_t image = at / pieces, piece = at - image * pieces;
    for (int64_t quad = piece * kThreads + threadIdx.x; quad < blocks_of(m.size); quad += pieces * kThreads)
      mine = max(mine, largest_of_four<kX>(m, image, quad));
    mine = largest_of_team(mine, ours);
    if (threadIdx.x != 0) continue;
    if (pieces == 1) m.largest[image] = float_of(mine);
    else atomicMax(reinterpret_cast<uint32_t*>(m.largest) + image, mine);
  }
}

template <OutType kX>
__global__ void __launch_bounds__(kThreads, 8) round_images_kernel(const __grid_constant__ Images m, int64_t pieces) {
  for (int64_t at = blockIdx.x; at < m.images * pieces; at += gridDim.x) {
    const int64_t image = at / pieces, piece = at - image * pieces;
    for (int64_t quad = piece * kThreads + threadIdx.x; quad < blocks_of(m.size); quad += pieces * kThreads)
      round_four<kX>(m, image, quad);
  }
}

template <OutType kX>
__global__ void __launch_bounds__(kThreads, 8) turn_images_kernel(const __grid_constant__ Images m, int64_t pieces) {
  for (int64_t at = blockIdx.x; at < m.images * pieces; at += gridDim.x) {
    const int64_t image = at / pieces, nth = (at - image * pieces) * kThreads + threadIdx.x;
    if (nth < m.size / kVector) round_sixteen<kX>(m, image, nth);
  }
}

__global__ void __launch_bounds__(kThreads, 8)
    turn_weights_kernel(const int8_t* from, int8_t* to, int64_t count, int channels, int places) {
  const int64_t step = (int64_t)gridDim.x * kThreads;
  for (int64_t nth = (int64_t)blockIdx.x * kThreads + threadIdx.x; nth < count; nth += step)
    turn_sixteen(from, to, nth, channels, places);
}

}  // namespace

cudaError_t measure_images(const Images& m, const Program& p, float* unit, cudaStream_t stream) {
  const int64_t pieces = pieces_of(m);
  if (pieces > 1) {
    const cudaError_t error = cudaMemsetAsync(m.largest, 0, m.images * sizeof *m.largest, stream);  // the identity of the maximum
    if (error != cudaSuccess) return error;
  }
  const unsigned grid = grid_for(m.images * pieces + 1);
  if (m.type == OutType::kBFloat16)
    measure_images_kernel<OutType::kBFloat16><<<grid, kThreads, 0, stream>>>(m, p, unit, pieces);
  else if (m.type == OutType::kFloat16)
    measure_images_kernel<OutType::kFloat16><<<grid, kThreads, 0, stream>>>(m, p, unit, pieces);
  else
    measure_images_kernel<OutType::kFloat32><<<grid, kThreads, 0, stream>>>(m, p, unit, pieces);
  return cudaGetLastError();
}

cudaError_t round_images(const Images& m, cudaStream_t stream) {
  if (m.images == 0 || m.size == 0) return cudaSuccess;
  const int64_t pieces = pieces_of(m);
  const unsigned grid = grid_for(m.images * pieces);
  const auto launch = [&](auto type) {
    if (m.places) turn_images_kernel<type><<<grid, kThreads, 0, stream>>>(m, pieces);
    else round_images_kernel<type><<<grid, kThreads, 0, stream>>>(m, pieces);
  };
  if (m.type == OutType::kBFloat16) launch(std::integral_constant<OutType, OutType::kBFloat16>());
  else if (m.type == OutType::kFloat16) launch(std::integral_constant<OutType, OutType::kFloat16>());
  else launch(std::integral_constant<OutType, OutType::kFloat32>());
  return cudaGetLastError();
}

cudaError_t turn_weights(const Fused& f, void* to, cudaStream_t stream) {
  const Program& p = f.program;
  if (!channels_fill_vectors(f) || !is_aligned(to)) return cudaErrorInvalidValue;
  const int64_t count = p.chips * p.n / kVector;
  if (count == 0) return cudaSuccess;
  turn_weights_kernel<<<grid_for((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      static_cast<const int8_t*>(p.out), static_cast<int8_t*>(to), count, f.channels / f.groups, f.kernel[0] * f.kernel[1]);
  return cudaGetLastError();
}

cudaError_t int8_plan(const Fused& f, Plan* plan) {
  int count = 0;
  const cudaError_t error = can_fuse(f) ? multiprocessors(&count) : cudaErrorInvalidValue;
  if (error == cudaSuccess) *plan = plan_for<Sizes, true>(f, count);
  return error;
}

cudaError_t int8_product(const Fused& f, const Plan& plan, float* sums, cudaStream_t stream) {
  if (!can_fuse(f) || (f.by_tap && !goes_by_tap(f))) return cudaErrorInvalidValue;
  const cudaError_t error = launch_tiles<Sizes, true>(f, plan, sums, stream);
  if (error != cudaSuccess || plan.floats == 0 || is_empty(f)) return error;
  return with_tile<true>(f, [&](auto type, auto wide) { return launch_add_parts<type, wide>(f, plan.split, sums, stream); });
}

}  // namespace cuda
}  // namespace nft
