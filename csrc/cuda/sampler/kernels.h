// The sampler's kernels. A thread takes four weights at a time
// (four_weights.h), or eight (eight_weights.h). GPU code only.
//
// A grid has as many thread blocks as the GPU holds at once, and they share all layers of a batch (layer_batch.h). So
// no tensor is too large for a grid, and a thread block copies a device table to shared memory once.
//
// Every kernel exists for one layer and for a full batch: the
// arguments of a launch cost time, and most launches have one layer.
#pragma once

#include "cuda/sampler/channels_last.h"
#include "cuda/sampler/shared_table.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

constexpr int kThreads = 256;

// Thread blocks that a multiprocessor holds at once. Eight fill its 2048 threads at 32 registers each. Eight weights at
// a time take 48 registers; the per-device path needs 64, or it spills. Tables too large for shared memory take
// registers for their addresses: 40 and 80.
constexpr int kResident = 8;
constexpr int resident_blocks(int path, bool table_in_shared) {
  if (path == kPathDevice) return table_in_shared ? 4 : 3;
  if (path == kPathFast) return table_in_shared ? 5 : 6;
  return kResident;
}
constexpr int resident_blocks_channels_last(OutType tile) {
  return tile == OutType::kFloat32 ? 4 : 6;
}  // of kTileThreads

// This thread block's share. Volatile, so that the compiler computes it again for each layer instead of keeping it in
// registers that the weights need.
template <int kMost>
__device__ Range share(const Batch<kMost>& batch) {
  unsigned part;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(part));
  return share_of(batch, part);
}

// Bit patterns of magnitudes have the order of the magnitudes, with NaN above all. So their maximum is an integer's, in
// any order. One global atomic per thread block and layer: thousands of warps would queue for the same address.
template <int kMost>
__global__ void __launch_bounds__(kThreads)
    abs_max_kernel(const __grid_constant__ Batch<kMost> batch, uint32_t* largest) {
  __shared__ uint32_t ours;
  for (int l = layer_of(batch, share(batch).begin); reaches(batch, share(batch), l); ++l) {
    const Range quads = quads_in(batch, share(batch), l);
    const float* weight = (const float*)batch.layer[l].source;
    if (threadIdx.x == 0) ours = 0;
    __syncthreads();
    uint32_t mine = 0;
    for (int64_t quad = quads.begin + threadIdx.x; quad < quads.end; quad += kThreads)
      mine = max(mine, abs_max_of_quad(weight, batch.layer[l].n, quad));
    mine = __reduce_max_sync(0xffffffffu, mine);
    if (threadIdx.x % 32 == 0) atomicMax(&ours, mine);
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(largest + l, ours);
  }
}

// In place: the bit pattern of max|W| becomes the step.
template <int kMost>
__global__ void step_kernel(const __grid_constant__ Batch<kMost> batch, float* step) {
  const int l = (int)threadIdx.x;
  if (l < batch.count) step[l] = step_or_nan(bits_of(step[l]), batch.layer[l].weight_bits);
}

template <class Packed>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const float* weight, int64_t n, const float* step, int weight_bits, Packed* codes) {
  const int64_t first = (int64_t)blockIdx.x * kThreads + threadIdx.x, stride = (int64_t)gridDim.x * kThreads;
  for (int64_t quad = first; quad < quads_of(n); quad += stride)
    quantize_quad(weight, n, *step, weight_bits, codes, quad);
}

// Codes index the device table. If one has more than weight_bits bits, the step becomes NaN, and no table is read.
template <class Packed>
__global__ void __launch_bounds__(kThreads) check_codes_kernel(const Packed* codes, int64_t n, int top, float* step) {
  const int64_t first = (int64_t)blockIdx.x * kThreads + threadIdx.x, stride = (int64_t)gridDim.x * kThreads;
  bool wrong = false;
  for (int64_t i = first; i < n; i += stride) wrong = wrong || code_magnitude(codes[i]) > top;
  if (wrong) *step = float_of(0x7fc00000u);
}

// Where a tile starts in shared memory, after the table, in floats.
__host__ __device__ constexpr int tile_offset(int table_bytes) { return (table_bytes + 15) / 16 * 4; }

// Programs the eights of a share.
template <OutType kOut, bool kConstant>
__device__ void program_eights(const Program& p, const Table& table, const Range& eights) {
  const float step = usable_step(p.step), std = table.values[table.levels];
#pragma unroll 1
  for (int64_t eight = eights.begin + threadIdx.x; eight < eights.end; eight += kThreads)
    program_eight<kOut, kConstant>(p, table, step, std, eight, load_eight(p, step, eight), blockIdx.y, gridDim.y);
}

// What a tile holds: results; or, if rows are scaled, float32 numbers, which are rounded once, after the scale.
template <OutType kOut, bool kScaled>
constexpr OutType kTileType = kScaled ? OutType::kFloat32 : kOut;

// Programs the tiles of a share, stored channels last.
template <OutType kOut, bool kConstant, bool kScaled>
__device__ void program_tiles(const Program& p, const Table& table, const Range& tiles,
                              typename Stored<kTileType<kOut, kScaled>>::Type* tile_memory) {
  const float step = usable_step(p.step), std = table.values[table.levels];
  TileStart at = tile_start(p, tiles.begin);
#pragma unroll 1
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, advance(at, p)) {
    const int eights = channels_in_tile(p, tile) * p.taps / 8;
    const int64_t eight = tile * (tile_channels(p.taps) * p.taps / 8) + threadIdx.x;
    EightCodes c = {};
    if ((int)threadIdx.x < eights && step >= 0.0f) c = unpacked_eight(load_packed(p, eight));
#pragma unroll 1
    for (int chip = (int)blockIdx.y; chip < p.chips; chip += (int)gridDim.y) {
      if ((int)threadIdx.x < eights) {
        float w[8];
        eight_on_chip<kConstant>(table, std, key_of(p, chip), step, opaque(eight), c, w);
        store_eight<kTileType<kOut, kScaled>>(tile_memory + 8 * threadIdx.x, w, c.sign);
      }
      __syncthreads();
      write_tile<kOut>(p, at, channels_in_tile(p, tile), tile_memory, (typename Stored<kOut>::Type*)p.out + chip * p.n,
                       (int)threadIdx.x);
      __syncthreads();
    }
  }
}

template <int kPath, OutType kOut, bool kTableInShared, int kMost>
__global__ void __launch_bounds__(kThreads, resident_blocks(kPath, kTableInShared))
    program_kernel(const __grid_constant__ Batch<kMost> batch) {
  extern __shared__ float shared[];
  for (int l = layer_of(batch, share(batch).begin); reaches(batch, share(batch), l); ++l) {
    const Program p = program_in<kPath, kOut>(batch, l);
    const Range quads = quads_in(batch, share(batch), l);
    Table table = {p.table, table_levels(p), false};
    if (kTableInShared) table = shared_table<kThreads>(p, shared);
    int64_t rest = quads.begin;
    if constexpr (kPath == kPathFast && kTableInShared) {
      const Range eights = {quads.begin / 2, min(quads.end / 2, eights_of(p))};
      if (table.constant)
        program_eights<kOut, true>(p, table, eights);
      else
        program_eights<kOut, false>(p, table, eights);
      rest = max(rest, 2 * eights.end);
    }
#pragma unroll 1
    for (int64_t quad = rest + threadIdx.x;; quad += kThreads) {
      // Computed again each time: registers are short.
      if (quad >= quads_in(batch, share(batch), l).end) break;
      program_quad<kPath, kOut>(p, table, quad, blockIdx.y, gridDim.y);
    }
  }
}

// Layers stored channels last: codes of two bytes, tables in shared memory, the fast path.
template <OutType kOut, bool kScaled, int kMost>
__global__ void __launch_bounds__(kTileThreads, resident_blocks_channels_last(kTileType<kOut, kScaled>))
    program_channels_last_kernel(const __grid_constant__ Batch<kMost> batch) {
  extern __shared__ float shared[];
  for (int l = layer_of(batch, share(batch).begin); reaches(batch, share(batch), l); ++l) {
    const Program p = program_in<kPathFast, kOut>(batch, l);
    const Table table = shared_table<kTileThreads>(p, shared);
    if (!(eights_of(p) > 0)) {  // an irregular step makes all weights equal, so their order does not matter
      const Range quads = quads_in(batch, share(batch), l);
#pragma unroll 1
      for (int64_t quad = quads.begin + threadIdx.x; quad < quads.end; quad += kTileThreads)
        program_quad<kPathFast, kOut>(p, table, quad, blockIdx.y, gridDim.y);
      continue;
    }
    const Range tiles = tiles_in(quads_in(batch, share(batch), l), p.taps);
    auto* const memory = (typename Stored<kTileType<kOut, kScaled>>::Type*)(shared + tile_offset(batch.table_bytes));
    if (table.constant)
      program_tiles<kOut, true, kScaled>(p, table, tiles, memory);
    else
      program_tiles<kOut, false, kScaled>(p, table, tiles, memory);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace nft
