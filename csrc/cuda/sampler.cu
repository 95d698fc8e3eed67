// Kernels and launches of csrc/cuda/sampler.h. A thread takes one block of four weights at a time (csrc/cuda/block.h); grids
// are only as large as the device can hold at once and stride over the rest, so no tensor is too large for a grid and the
// device table is fetched into shared memory once a resident block of threads.
#include "sampler.h"

#include <algorithm>

namespace nft {
namespace cuda {
namespace {

using namespace generic;

constexpr int kThreads = 256;
constexpr size_t kSharedBytes = 48 << 10;  // what a launch may ask for without raising the kernel's limit

// Thread blocks that a multiprocessor holds at once: 8 fill its 2048 threads at 32 registers each; the per-device path keeps
// more values alive and would spill them below 64 registers.
constexpr int kResident = 8;
constexpr int resident_blocks(int path) { return path == kPathDevice ? 4 : kResident; }

__device__ int64_t first_block() { return (int64_t)blockIdx.x * kThreads + threadIdx.x; }
__device__ int64_t block_stride() { return (int64_t)gridDim.x * kThreads; }

// Bit patterns of magnitudes are ordered like the magnitudes, with NaN above all: their maximum needs no floats, and no order.
__global__ void __launch_bounds__(kThreads) largest_kernel(const float* weight, int64_t n, uint32_t* largest) {
  uint32_t mine = 0;
  for (int64_t block = first_block(); block < blocks_of(n); block += block_stride())
    mine = max(mine, largest_of_block(weight, n, block));
  mine = __reduce_max_sync(0xffffffffu, mine);
  if (threadIdx.x % 32 == 0) atomicMax(largest, mine);
}

// In place: the bit pattern of the largest magnitude becomes the step.
__global__ void step_kernel(float* step, int weight_bits) { *step = step_or_nan(bits_of(*step), weight_bits); }

template <class Packed>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const float* weight, int64_t n, const float* step, int weight_bits, Packed* codes) {
  for (int64_t block = first_block(); block < blocks_of(n); block += block_stride())
    quantize_block(weight, n, *step, weight_bits, codes, block);
}

// The table in shared memory, and whether it is a constant one (csrc/cpu/ops_cpu.cpp finds out the same way on the host).
__device__ Table staged_table(const Program& p, float* shared) {
  const int levels = table_levels(p);
  const float std = p.table[levels];
  bool constant = true;
  for (int i = (int)threadIdx.x; i < table_entries(p); i += kThreads) {
    const float value = p.table[i];
    shared[i] = value;
    constant = constant && is_constant(i, value, std, levels);
  }
  return {shared, levels, __syncthreads_and(constant) != 0};
}

template <int kPath, OutType kOut, bool kStaged>
__global__ void __launch_bounds__(kThreads, resident_blocks(kPath)) program_kernel(const __grid_constant__ Program p) {
  extern __shared__ float shared[];
  Table table = {p.table, table_levels(p), false};
  if (kStaged) table = staged_table(p, shared);
  for (int64_t block = first_block(); block < blocks_of(p.n); block += block_stride())
    program_block<kPath, kOut>(p, table, block, blockIdx.y, gridDim.y);
}

// As many thread blocks as the current device holds at once (`resident` a multiprocessor): `x` for the weights, and where
// these are few, `y` for the chips.
cudaError_t grid_for(int64_t n, int64_t chips, int resident, dim3* grid) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t most = std::max<int64_t>(1, (int64_t)multiprocessors * resident);
  const int64_t x = std::max<int64_t>(1, std::min((blocks_of(n) + kThreads - 1) / kThreads, most));
  const int64_t y = std::max<int64_t>(1, std::min<int64_t>({chips, most / x, 65535}));
  *grid = dim3((unsigned)x, (unsigned)y);
  return error;
}

template <int kPath, OutType kOut>
cudaError_t launch(const Program& p, dim3 grid, cudaStream_t stream) {
  const size_t bytes = kPath == kPathOff ? 0 : table_entries(p) * sizeof(float);
  if (kPath != kPathOff && bytes <= kSharedBytes)
    program_kernel<kPath, kOut, kPath != kPathOff><<<grid, kThreads, bytes, stream>>>(p);
  else
    program_kernel<kPath, kOut, false><<<grid, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <int kPath>
cudaError_t launch(const Program& p, dim3 grid, cudaStream_t stream) {
  if (p.out_type == OutType::kBFloat16) return launch<kPath, OutType::kBFloat16>(p, grid, stream);
  if (p.out_type == OutType::kFloat16) return launch<kPath, OutType::kFloat16>(p, grid, stream);
  return launch<kPath, OutType::kFloat32>(p, grid, stream);
}

}  // namespace

cudaError_t weight_step(const float* weight, int64_t n, int weight_bits, float* step, cudaStream_t stream) {
  dim3 grid;
  cudaError_t error = grid_for(n, 1, kResident, &grid);
  if (error == cudaSuccess) error = cudaMemsetAsync(step, 0, sizeof *step, stream);  // the identity of the maximum
  if (error != cudaSuccess) return error;
  if (n > 0) largest_kernel<<<grid, kThreads, 0, stream>>>(weight, n, reinterpret_cast<uint32_t*>(step));
  step_kernel<<<1, 1, 0, stream>>>(step, weight_bits);
  return cudaGetLastError();
}

cudaError_t quantize(const float* weight, int64_t n, const float* step, int weight_bits, void* codes, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  dim3 grid;
  const cudaError_t error = grid_for(n, 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  if (weight_bits <= 15)
    quantize_kernel<<<grid, kThreads, 0, stream>>>(weight, n, step, weight_bits, static_cast<int16_t*>(codes));
  else
    quantize_kernel<<<grid, kThreads, 0, stream>>>(weight, n, step, weight_bits, static_cast<int32_t*>(codes));
  return cudaGetLastError();
}

cudaError_t program(const Program& p, cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  dim3 grid;
  const cudaError_t error = grid_for(p.n, p.chips, resident_blocks(p.path), &grid);
  if (error != cudaSuccess) return error;
  if (p.path == kPathFast) return launch<kPathFast>(p, grid, stream);
  if (p.path == kPathDevice) return launch<kPathDevice>(p, grid, stream);
  return launch<kPathOff>(p, grid, stream);
}

}  // namespace cuda
}  // namespace nft
