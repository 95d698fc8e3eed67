// Kernels and launches for layers with several steps. One launch programs one layer, four weights per thread, in any
// layout, path and number format.
#include "cuda/sampler/step_runs.h"

#include "cuda/sampler/launch_grid.h"
#include "cuda/sampler/layer_batch.h"
#include "cuda/sampler/sampler.h"
#include "cuda/sampler/shared_table.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Thread blocks that a multiprocessor holds at once: 48 registers per thread, or 64 on the per-device path.
constexpr int kResident = 5;
constexpr int resident_blocks(int path) { return path == kPathDevice ? 4 : kResident; }

// Integer maxima are the same in any order. Where all quads of a warp lie in one run, the warp needs one atomic.
__global__ void __launch_bounds__(kThreads, kResident)
    run_maxima_kernel(const float* weight, int64_t n, const __grid_constant__ Scaling s, uint32_t* largest) {
  const int lane = (int)threadIdx.x % 32;
  const int64_t first = (int64_t)blockIdx.x * kWarps + threadIdx.x / 32, stride = (int64_t)gridDim.x * kWarps;
#pragma unroll 1
  for (int64_t strip = first; strip < strips_of(n); strip += stride) {
    // Lanes behind the end repeat the last quad, which changes no maximum.
    const QuadMagnitudes m = magnitudes_of_quad(weight, n, s, min(strip * kStrip + lane, quads_of(n) - 1));
    const int64_t run = __shfl_sync(0xffffffffu, m.index[0], 0);
    if (__all_sync(0xffffffffu, lies_in(m, run))) {
      const uint32_t ours = __reduce_max_sync(0xffffffffu, largest_of(m));
      if (lane == 0) atomicMax(largest + run, ours);
    } else {
      raise_maxima(m, [&](int64_t index, uint32_t bits) { atomicMax(largest + index, bits); });
    }
  }
}

// In place: bit patterns of max|W| become steps.
__global__ void __launch_bounds__(kThreads) steps_of_runs_kernel(float* steps, int64_t count, int weight_bits) {
  const int64_t first = (int64_t)blockIdx.x * kThreads + threadIdx.x, stride = (int64_t)gridDim.x * kThreads;
  for (int64_t i = first; i < count; i += stride) steps[i] = step_or_nan(bits_of(steps[i]), weight_bits);
}

template <class Packed>
__global__ void __launch_bounds__(kThreads, kResident)
    quantize_runs_kernel(const __grid_constant__ Program p, const __grid_constant__ Scaling s, Packed* codes) {
  const int64_t first = (int64_t)blockIdx.x * kThreads + threadIdx.x, stride = (int64_t)gridDim.x * kThreads;
#pragma unroll 1
  for (int64_t quad = first; quad < quads_of(p.n); quad += stride) quantize_quad_of_runs(p, s, codes, quad);
}

// A thread block that sees a wrong code makes all steps NaN.
template <class Packed>
__global__ void __launch_bounds__(kThreads)
    check_run_codes_kernel(const Packed* codes, int64_t n, int top, float* steps, int64_t count) {
  const int64_t first = (int64_t)blockIdx.x * kThreads + threadIdx.x, stride = (int64_t)gridDim.x * kThreads;
  bool wrong = false;
  for (int64_t i = first; i < n; i += stride) wrong = wrong || code_magnitude(codes[i]) > top;
  if (!__syncthreads_or(wrong)) return;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) steps[i] = float_of(0x7fc00000u);
}

template <int kPath, bool kTableInShared>
__global__ void __launch_bounds__(kThreads, resident_blocks(kPath))
    program_runs_kernel(const __grid_constant__ Program p, const __grid_constant__ Scaling s) {
  extern __shared__ float shared[];
  Table table = {p.table, table_levels(p), false};
  if constexpr (kTableInShared) table = shared_table<kThreads>(p, shared);
  const int64_t first = (int64_t)blockIdx.x * kThreads + threadIdx.x, stride = (int64_t)gridDim.x * kThreads;
#pragma unroll 1
  for (int64_t quad = first; quad < quads_of(p.n); quad += stride)
    program_quad_of_runs<kPath>(p, s, table, quad, blockIdx.y, gridDim.y);
}

// Rounds of a thread block over n numbers, `each` per thread.
int64_t works_of(int64_t n, int64_t each) { return (n + each * kThreads - 1) / (each * kThreads); }

template <int kPath, bool kTableInShared>
cudaError_t launch(const Program& p, const Scaling& s, cudaStream_t stream) {
  dim3 grid;
  const cudaError_t error = grid_for(works_of(p.n, 4), p.chips, resident_blocks(kPath), &grid);
  if (error != cudaSuccess) return error;
  const size_t shared_bytes = kTableInShared ? (size_t)table_bytes(p) : 0;
  program_runs_kernel<kPath, kTableInShared><<<grid, kThreads, shared_bytes, stream>>>(p, s);
  return cudaGetLastError();
}

}  // namespace

cudaError_t weight_steps(const float* weight, int64_t n, const Scaling& s, int weight_bits, float* steps,
                         cudaStream_t stream) {
  const int64_t count = step_count(s);
  if (count == 0) return cudaSuccess;
  cudaError_t error = cudaMemsetAsync(steps, 0, (size_t)count * sizeof *steps, stream);  // the maximum's identity
  if (error != cudaSuccess || n == 0) return error;
  dim3 grid;
  error = grid_for(works_of(n, 4), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  run_maxima_kernel<<<grid, kThreads, 0, stream>>>(weight, n, s, reinterpret_cast<uint32_t*>(steps));
  error = grid_for(works_of(count, 1), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  steps_of_runs_kernel<<<grid, kThreads, 0, stream>>>(steps, count, weight_bits);
  return cudaGetLastError();
}

cudaError_t quantize_runs(const float* weight, int64_t n, const Scaling& s, const float* steps, int weight_bits,
                          void* codes, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  dim3 grid;
  const cudaError_t error = grid_for(works_of(n, 4), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  Program p = {};
  p.weight = weight;
  p.n = n;
  p.step = steps;
  p.weight_bits = weight_bits;
  if (weight_bits <= 15)
    quantize_runs_kernel<<<grid, kThreads, 0, stream>>>(p, s, static_cast<int16_t*>(codes));
  else
    quantize_runs_kernel<<<grid, kThreads, 0, stream>>>(p, s, static_cast<int32_t*>(codes));
  return cudaGetLastError();
}

cudaError_t check_codes_of_runs(const void* codes, int64_t n, const Scaling& s, int weight_bits, const float* steps,
                                float* checked, cudaStream_t stream) {
  const int64_t count = step_count(s);
  cudaError_t error = cudaMemcpyAsync(checked, steps, (size_t)count * sizeof *steps, cudaMemcpyDeviceToDevice, stream);
  if (error != cudaSuccess || n == 0) return error;
  dim3 grid;
  error = grid_for(works_of(n, 4), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  const int top = (1 << weight_bits) - 1;
  if (weight_bits <= 15)
    check_run_codes_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const int16_t*>(codes), n, top, checked, count);
  else
    check_run_codes_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const int32_t*>(codes), n, top, checked, count);
  return cudaGetLastError();
}

cudaError_t program_runs(const Program& p, const Scaling& s, cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  const bool in_shared = table_bytes(p) <= kSharedTableBytes;
  if (p.path == kPathFast)
    return in_shared ? launch<kPathFast, true>(p, s, stream) : launch<kPathFast, false>(p, s, stream);
  if (p.path == kPathDevice)
    return in_shared ? launch<kPathDevice, true>(p, s, stream) : launch<kPathDevice, false>(p, s, stream);
  return launch<kPathOff, false>(p, s, stream);
}

}  // namespace cuda
}  // namespace nft
