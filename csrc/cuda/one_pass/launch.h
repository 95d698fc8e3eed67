// The tile loop of tile_loop.h as a kernel, and its launch: the team of one GPU thread (mma.sync and barriers), the
// table in shared memory, the choice of a tile and a grid. GPU code only.
//
// A tile generates its weights once, which costs more than its product. So tiles are wide. With few columns, smaller
// tiles spread the generating over more multiprocessors.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <type_traits>

#include "cuda/one_pass/one_pass.h"
#include "cuda/sampler/shared_table.h"
#include "cuda/one_pass/tile_loop.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

constexpr int kNarrowColumns = 32;  // up to so many columns fit one narrow tile

// Thread blocks that a multiprocessor holds at once: as many as the registers of the inner loop allow without a spill.
constexpr int resident_blocks(bool wide) { return wide ? 2 : 5; }

// d += a * b, 16 x 8 numbers held by a warp.
template <OutType kType>
__device__ __forceinline__ void mma_sync(float* d, const uint32_t* a, const uint32_t* b) {
  if constexpr (kType == OutType::kBFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else if constexpr (kType == OutType::kFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// This thread's part in the team of a thread block. (The tile loop
// is compiled for the host too, where these functions never run.)
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
    mma_sync<T::kType>(addend<T>(state, down, across), state.a[a_half], state.b[b_half][across]);
#endif
  }
};

// S: Sizes for the layer's product, GradientSizes for its input's gradient.
template <class S, OutType kX, bool kWide, int kPath>
__global__ void __launch_bounds__((Tile<kX, kWide>::kThreads), resident_blocks(kWide))
    one_pass_kernel(const __grid_constant__ OnePassProduct f, const __grid_constant__ S sizes,
                    const __grid_constant__ Tiling tiling, const __grid_constant__ Split split, float* sums,
                    bool table_in_shared) {
  typedef Tile<kX, kWide> T;
  __shared__ Shared<T> shared;
  extern __shared__ float table_memory[];
  Table table = {f.program.table, table_levels(f.program), false};
  if (kPath != kPathOff && table_in_shared) table = shared_table<T::kThreads>(f.program, table_memory);
  OneThread<T> team;
  for (int64_t nth = blockIdx.x; nth < tiling.count * split.parts; nth += gridDim.x) {
    const int64_t tile = nth / split.parts;
    const int part = (int)(nth - tile * split.parts);
    multiply_tile<T, kPath>(f, table, sizes, place_of(f, tiling, tile), steps_of_part(split, part, steps_of<T>(sizes)),
                            sums ? sums + place_of_sums<T>(split, tile, part, 0, 0) : nullptr, shared, team);
  }
}

template <class S, OutType kX, bool kWide>
Tiling tiling_for(const OnePassProduct& f) {
  typedef Tile<kX, kWide> T;
  return tiling_of(f, sizes_for<T, S>(f), T::kRows, T::kColumns);
}

// Calls run(the tile's number type, whether it is wide) for a product, with both as constants.
template <class Run>
auto with_tile(const OnePassProduct& f, const Run& run) {
  const auto with = [&](auto type) {
    return sizes_of(f).columns > kNarrowColumns ? run(type, std::true_type()) : run(type, std::false_type());
  };
  if (f.x_type == OutType::kBFloat16) return with(std::integral_constant<OutType, OutType::kBFloat16>());
  if (f.x_type == OutType::kFloat16) return with(std::integral_constant<OutType, OutType::kFloat16>());
  return with(std::integral_constant<OutType, OutType::kFloat32>());
}

// Tiles of all number types are alike here.
template <bool kWide>
__global__ void add_parts_kernel(const __grid_constant__ OnePassProduct f, const __grid_constant__ Sizes sizes,
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
cudaError_t launch_add_parts(const OnePassProduct& f, const Split& split, const float* sums, cudaStream_t stream) {
  typedef Tile<OutType::kFloat32, kWide> T;
  constexpr int kThreads = 64;  // few threads, hence many thread blocks: there are few results
  const Sizes sizes = sizes_of(f);
  const Tiling tiling = tiling_of(f, sizes, T::kRows, T::kColumns);
  const int64_t count = tiling.count * (sums_of_tile<T>() / 4);
  const unsigned grid = (unsigned)std::min<int64_t>((count + kThreads - 1) / kThreads, 0x7fffffff);
  add_parts_kernel<kWide><<<grid, kThreads, 0, stream>>>(f, sizes, tiling, split, sums);
  return cudaGetLastError();
}

inline bool is_empty(const OnePassProduct& f) {
  return sizes_of(f).columns == 0 || f.rows == 0 || f.program.chips == 0;
}

template <class S>
Partition partition_for(const OnePassProduct& f, int multiprocessors) {
  if (is_empty(f)) return {{1, 0}, 0};
  return with_tile(f, [&](auto type, auto wide) -> Partition {
    typedef Tile<type, wide> T;
    const int64_t tiles = tiling_for<S, type, wide>(f).count;
    const int64_t resident = (int64_t)multiprocessors * resident_blocks(wide);
    const Split split = split_of(tiles, steps_of<T>(sizes_for<T, S>(f)), resident);
    return {split, split.parts > 1 ? tiles * split.parts * sums_of_tile<T>() : 0};
  });
}

template <class S, OutType kX, bool kWide, int kPath>
cudaError_t launch(const OnePassProduct& f, const Split& split, float* sums, cudaStream_t stream) {
  typedef Tile<kX, kWide> T;
  const Tiling tiling = tiling_for<S, kX, kWide>(f);
  const size_t table = table_bytes(f.program);
  const bool table_in_shared = kPath != kPathOff && table + sizeof(Shared<T>) <= (size_t)kSharedTableBytes;
  const unsigned grid =
      (unsigned)std::min<int64_t>(tiling.count * split.parts, 0x7fffffff);  // thread blocks stride over the rest
  one_pass_kernel<S, kX, kWide, kPath><<<grid, T::kThreads, table_in_shared ? table : 0, stream>>>(
      f, sizes_for<T, S>(f), tiling, split, sums, table_in_shared);
  return cudaGetLastError();
}

template <class S>
cudaError_t launch(const OnePassProduct& f, const Partition& partition, float* sums, cudaStream_t stream) {
  if (is_empty(f)) return cudaSuccess;
  if (partition.floats == 0)
    sums = nullptr;
  else if (sums == nullptr)
    return cudaErrorInvalidValue;
  const cudaError_t error = with_tile(f, [&](auto type, auto wide) {
    if (f.program.path == kPathFast) return launch<S, type, wide, kPathFast>(f, partition.split, sums, stream);
    if (f.program.path == kPathDevice) return launch<S, type, wide, kPathDevice>(f, partition.split, sums, stream);
    return launch<S, type, wide, kPathOff>(f, partition.split, sums, stream);
  });
  return error == cudaSuccess && sums ? add_parts(f, partition, sums, stream) : error;
}

inline bool groups_divide(const OnePassProduct& f) {
  return f.groups > 0 && f.rows % f.groups == 0 && f.channels % f.groups == 0 && f.kernel[0] > 0 && f.kernel[1] > 0;
}

}  // namespace
}  // namespace cuda
}  // namespace nft
