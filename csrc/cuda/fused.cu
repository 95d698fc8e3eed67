// Kernels and launches of csrc/cuda/fused.h. The tile loop is csrc/cuda/fused/loop.h; here are only the team of one device thread
// (mma.sync and barriers), the table in shared memory, and the choice of a kernel and its grid.
//
// Weights are generated once for each tile of columns, and that costs more than a tile's product: hence wide tiles, except for
// few columns, where smaller tiles spread the generating over more multiprocessors.
#include "fused.h"

#include <algorithm>

#include "fused/loop.h"
#include "stage.h"

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

template <OutType kX, bool kWide, int kPath>
__global__ void __launch_bounds__((Tile<kX, kWide>::kThreads), resident_blocks(kWide))
    fused_kernel(const __grid_constant__ Fused f, const __grid_constant__ Sizes sizes, const __grid_constant__ Tiling tiling,
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

template <OutType kX, bool kWide, int kPath>
cudaError_t launch(const Fused& f, const Sizes& sizes, cudaStream_t stream) {
  typedef Tile<kX, kWide> T;
  const Tiling tiling = tiling_of(f, sizes, T::kRows, T::kColumns);
  const size_t table = table_bytes(f.program);
  const bool staged = kPath != kPathOff && table + sizeof(Shared<T>) <= (size_t)kStagedBytes;
  const unsigned grid = (unsigned)std::min<int64_t>(tiling.count, 0x7fffffff);  // kernels stride over more
  fused_kernel<kX, kWide, kPath><<<grid, T::kThreads, staged ? table : 0, stream>>>(f, sizes, tiling, staged);
  return cudaGetLastError();
}

template <OutType kX, bool kWide>
cudaError_t launch(const Fused& f, const Sizes& sizes, cudaStream_t stream) {
  if (f.program.path == kPathFast) return launch<kX, kWide, kPathFast>(f, sizes, stream);
  if (f.program.path == kPathDevice) return launch<kX, kWide, kPathDevice>(f, sizes, stream);
  return launch<kX, kWide, kPathOff>(f, sizes, stream);
}

template <OutType kX>
cudaError_t launch(const Fused& f, const Sizes& sizes, cudaStream_t stream) {
  return sizes.columns > kNarrowColumns ? launch<kX, true>(f, sizes, stream) : launch<kX, false>(f, sizes, stream);
}

template <OutType kY>
__global__ void finish_kernel(const Results r, const Epilogue e) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < r.count; at += step) finish_result<kY>(r, e, at);
}

}  // namespace

cudaError_t finish(const Results& r, const Epilogue& e, cudaStream_t stream) {
  if (r.count == 0) return cudaSuccess;
  constexpr int kThreads = 256;
  const unsigned grid = (unsigned)std::min<int64_t>((r.count + kThreads - 1) / kThreads, 0x7fffffff);  // threads stride over more
  if (r.type == OutType::kBFloat16)
    finish_kernel<OutType::kBFloat16><<<grid, kThreads, 0, stream>>>(r, e);
  else if (r.type == OutType::kFloat16)
    finish_kernel<OutType::kFloat16><<<grid, kThreads, 0, stream>>>(r, e);
  else
    finish_kernel<OutType::kFloat32><<<grid, kThreads, 0, stream>>>(r, e);
  return cudaGetLastError();
}

bool can_fuse(const Fused& f) {
  const bool divide = f.groups > 0 && f.rows % f.groups == 0 && f.channels % f.groups == 0;
  return divide && f.kernel[0] > 0 && f.kernel[1] > 0 && coordinates_fit(f);
}

cudaError_t fused(const Fused& f, cudaStream_t stream) {
  if (!can_fuse(f)) return cudaErrorInvalidValue;
  const Sizes sizes = sizes_of(f);
  if (sizes.columns == 0 || f.rows == 0 || f.program.chips == 0) return cudaSuccess;
  if (f.x_type == OutType::kBFloat16) return launch<OutType::kBFloat16>(f, sizes, stream);
  if (f.x_type == OutType::kFloat16) return launch<OutType::kFloat16>(f, sizes, stream);
  return launch<OutType::kFloat32>(f, sizes, stream);
}

}  // namespace cuda
}  // namespace nft
