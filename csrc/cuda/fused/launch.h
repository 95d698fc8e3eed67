// The tile loop of csrc/cuda/fused/loop.h as a kernel, and its launch: the team of one device thread (mma.sync and barriers), the
// table in shared memory, the choice of a tile and a grid. Device code only.
//
// Weights are generated once for each tile of columns, and that costs more than a tile's product: hence wide tiles, except for
// few columns, where smaller tiles spread the generating over more multiprocessors.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "../stage.h"
#include "loop.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

constexpr int kNarrowColumns = 32;         // up to these: one narrow tile

// Thread blocks that a multiprocessor holds at once: as many as the registers of the hot loop allow without a spill.
constexpr int resident_blocks(bool wide) { return wide ? 2 : 5; }

// d += a * b, 16 x 8 numbers held by a warp.
template <OutType kType>
__device__ __forceinline__ void mma_sync(float* d, const uint32_t* a, const uint32_t* b) {
  if constexpr (kType == OutType::kBFloat16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else if constexpr (kType == OutType::kFloat16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// This thread's part in the team of a thread block. (The tile loop is compiled for the host too, where these are never run.)
template <class T>
struct OneThread {
  State<T> state;

  template <class F>
  __host__ __device__ __forceinline__ void each(const F& f) {
#if defined(__CUDA_ARCH__)
    f((int)threadIdx.x, state);
#endif
  }
  __host__ __device__ __forceinline__ void barrier() {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
  __host__ __device__ __forceinline__ void mma(int down, int across, int a_half, int b_half) {
#if defined(__CUDA_ARCH__)
    mma_sync<T::kType>(state.sum[down][across], state.a[a_half], state.b[b_half][across]);
#endif
  }
};

// S: Sizes for the layer's product, GradientSizes for its input's gradient.
template <class S, OutType kX, bool kWide, int kPath>
__global__ void __launch_bounds__((Tile<kX, kWide>::kThreads), resident_blocks(kWide))
    fused_kernel(const __grid_constant__ Fused f, const __grid_constant__ S sizes, const __grid_constant__ Tiling tiling,
                 bool staged) {
  typedef Tile<kX, kWide> T;
  __shared__ Shared<T> shared;
  extern __shared__ float table_memory[];
  Table table = {f.program.table, table_levels(f.program), false};
  if (kPath != kPathOff && staged) table = staged_table<T::kThreads>(f.program, table_memory);
  OneThread<T> team;
  for (int64_t tile = blockIdx.x; tile < tiling.count; tile += gridDim.x)
    multiply_tile<T, kPath>(f, table, sizes, place_of(f, tiling, tile), shared, team);
}

template <class S, OutType kX, bool kWide, int kPath>
cudaError_t launch(const Fused& f, cudaStream_t stream) {
  typedef Tile<kX, kWide> T;
  const S sizes = sizes_for<T, S>(f);
  const Tiling tiling = tiling_of(f, sizes, T::kRows, T::kColumns);
  const size_t table = table_bytes(f.program);
  const bool staged = kPath != kPathOff && table + sizeof(Shared<T>) <= (size_t)kStagedBytes;
  const unsigned grid = (unsigned)std::min<int64_t>(tiling.count, 0x7fffffff);  // kernels stride over more
  fused_kernel<S, kX, kWide, kPath><<<grid, T::kThreads, staged ? table : 0, stream>>>(f, sizes, tiling, staged);
  return cudaGetLastError();
}

template <class S, OutType kX, bool kWide>
cudaError_t launch(const Fused& f, cudaStream_t stream) {
  if (f.program.path == kPathFast) return launch<S, kX, kWide, kPathFast>(f, stream);
  if (f.program.path == kPathDevice) return launch<S, kX, kWide, kPathDevice>(f, stream);
  return launch<S, kX, kWide, kPathOff>(f, stream);
}

template <class S, OutType kX>
cudaError_t launch(const Fused& f, int64_t columns, cudaStream_t stream) {
  return columns > kNarrowColumns ? launch<S, kX, true>(f, stream) : launch<S, kX, false>(f, stream);
}

template <class S>
cudaError_t launch(const Fused& f, cudaStream_t stream) {
  const int64_t columns = sizes_of(f).columns;
  if (columns == 0 || f.rows == 0 || f.program.chips == 0) return cudaSuccess;
  if (f.x_type == OutType::kBFloat16) return launch<S, OutType::kBFloat16>(f, columns, stream);
  if (f.x_type == OutType::kFloat16) return launch<S, OutType::kFloat16>(f, columns, stream);
  return launch<S, OutType::kFloat32>(f, columns, stream);
}

inline bool groups_divide(const Fused& f) {
  return f.groups > 0 && f.rows % f.groups == 0 && f.channels % f.groups == 0 && f.kernel[0] > 0 && f.kernel[1] > 0;
}

}  // namespace
}  // namespace cuda
}  // namespace nft
