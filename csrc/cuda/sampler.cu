// Kernels and launches of csrc/cuda/sampler.h. A thread takes one block of four weights at a time (csrc/cuda/block.h), or two
// (csrc/cuda/octet.h); grids are only as large as the device can hold at once and go through the rest, of all layers (csrc/cuda/many.h), so
// no tensor is too large for a grid and a device table is fetched into shared memory once a resident block of threads.
//
// Every kernel exists for one layer and for a full batch: the arguments of a launch cost time, and most launches by far
// have one layer only.
#include "sampler.h"

#include <algorithm>

#include "channels_last.h"
#include "stage.h"

namespace nft {
namespace cuda {
namespace {

using namespace generic;

constexpr int kThreads = 256;

// Thread blocks that a multiprocessor holds at once: 8 fill its 2048 threads at 32 registers each; eight weights at a time take 48,
// and the per-device path keeps more values alive and would spill them below 64. Tables too large for
// shared memory take registers for their addresses: 40 and 80.
constexpr int kResident = 8;
constexpr int resident_blocks(int path, bool staged) {
  if (path == kPathDevice) return staged ? 4 : 3;
  if (path == kPathFast) return staged ? 5 : 6;
  return kResident;
}
constexpr int resident_blocks_turned(OutType tile) { return tile == OutType::kFloat32 ? 4 : 6; }  // of kTileThreads

// This thread block's share. Volatile, so that it is computed anew for each layer, from constants: kept, it would take
// registers from the weights all the while.
template <int kMost>
__device__ Range share(const Batch<kMost>& batch) {
  unsigned part;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(part));
  return share_of(batch, part);
}

// Bit patterns of magnitudes are ordered like the magnitudes, with NaN above all: their maximum needs no floats, and no
// order. One global maximum a thread block and layer; thousands of warps would queue for the same address.
template <int kMost>
__global__ void __launch_bounds__(kThreads) largest_kernel(const __grid_constant__ Batch<kMost> batch, uint32_t* largest) {
  __shared__ uint32_t ours;
  for (int l = layer_of(batch, share(batch).begin); reaches(batch, share(batch), l); ++l) {
    const Range blocks = blocks_in(batch, share(batch), l);
    const float* weight = (const float*)batch.layer[l].source;
    if (threadIdx.x == 0) ours = 0;
    __syncthreads();
    uint32_t mine = 0;
    for (int64_t block = blocks.begin + threadIdx.x; block < blocks.end; block += kThreads)
      mine = max(mine, largest_of_block(weight, batch.layer[l].n, block));
    mine = __reduce_max_sync(0xffffffffu, mine);
    if (threadIdx.x % 32 == 0) atomicMax(&ours, mine);
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(largest + l, ours);
  }
}

// In place: the bit pattern of the largest magnitude becomes the step.
template <int kMost>
__global__ void step_kernel(const __grid_constant__ Batch<kMost> batch, float* step) {
  const int l = (int)threadIdx.x;
  if (l < batch.count) step[l] = step_or_nan(bits_of(step[l]), batch.layer[l].weight_bits);
}

template <class Packed>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const float* weight, int64_t n, const float* step, int weight_bits, Packed* codes) {
  const int64_t first = (int64_t)blockIdx.x * kThreads + threadIdx.x, stride = (int64_t)gridDim.x * kThreads;
  for (int64_t block = first; block < blocks_of(n); block += stride)
    quantize_block(weight, n, *step, weight_bits, codes, block);
}

// Where a tile stands in shared memory, behind the table, in floats.
__host__ __device__ constexpr int tile_offset(int table_bytes) { return (table_bytes + 15) / 16 * 4; }

// The octets of a share.
template <OutType kOut, bool kConstant>
__device__ void program_octets(const Program& p, const Table& table, const Range& octets) {
  const float step = *p.step, std = table.values[table.levels];
#pragma unroll 1
  for (int64_t octet = octets.begin + threadIdx.x; octet < octets.end; octet += kThreads)
    program_octet<kOut, kConstant>(p, table, step, std, octet, load_octet(p, step, octet), blockIdx.y, gridDim.y);
}

// What a tile holds: results, or where rows are scaled the numbers before, which are rounded once, after it.
template <OutType kOut, bool kScaled>
constexpr OutType kTileType = kScaled ? OutType::kFloat32 : kOut;

// The tiles of a share, stored channels last.
template <OutType kOut, bool kConstant, bool kScaled>
__device__ void program_tiles(const Program& p, const Table& table, const Range& tiles,
                              typename Stored<kTileType<kOut, kScaled>>::Type* tile_memory) {
  const float step = *p.step, std = table.values[table.levels];
  TileStart at = tile_start(p, tiles.begin);
#pragma unroll 1
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, go_on(at, p)) {
    const int octets = channels_in_tile(p, tile) * p.taps / 8;
    const int64_t octet = tile * (tile_channels(p.taps) * p.taps / 8) + threadIdx.x;
    OctetCodes c = {};
    if ((int)threadIdx.x < octets) c = unpacked_octet(load_packed(p, octet));
#pragma unroll 1
    for (int chip = (int)blockIdx.y; chip < p.chips; chip += (int)gridDim.y) {
      if ((int)threadIdx.x < octets) {
        float w[8];
        octet_on_chip<kConstant>(table, std, key_of(p, chip), step, opaque(octet), c, w);
        store_octet<kTileType<kOut, kScaled>>(tile_memory + 8 * threadIdx.x, w, c.sign);
      }
      __syncthreads();
      write_tile<kOut>(p, at, channels_in_tile(p, tile), tile_memory, (typename Stored<kOut>::Type*)p.out + chip * p.n,
                       (int)threadIdx.x);
      __syncthreads();
    }
  }
}

template <int kPath, OutType kOut, bool kStaged, int kMost>
__global__ void __launch_bounds__(kThreads, resident_blocks(kPath, kStaged))
    program_kernel(const __grid_constant__ Batch<kMost> batch) {
  extern __shared__ float shared[];
  for (int l = layer_of(batch, share(batch).begin); reaches(batch, share(batch), l); ++l) {
    const Program p = program_in<kPath, kOut>(batch, l);
    const Range blocks = blocks_in(batch, share(batch), l);
    Table table = {p.table, table_levels(p), false};
    if (kStaged) table = staged_table<kThreads>(p, shared);
    int64_t rest = blocks.begin;
    if constexpr (kPath == kPathFast && kStaged) {
      const Range octets = {blocks.begin / 2, min(blocks.end / 2, octets_of(p))};
      if (table.constant)
        program_octets<kOut, true>(p, table, octets);
      else
        program_octets<kOut, false>(p, table, octets);
      rest = max(rest, 2 * octets.end);
    }
#pragma unroll 1
    for (int64_t block = rest + threadIdx.x;; block += kThreads) {
      // Computed anew each time: registers are short.
      if (block >= blocks_in(batch, share(batch), l).end) break;
      program_block<kPath, kOut>(p, table, block, blockIdx.y, gridDim.y);
    }
  }
}

// Layers that are stored channels last: codes of two bytes, staged tables, the fast path.
template <OutType kOut, bool kScaled, int kMost>
__global__ void __launch_bounds__(kTileThreads, resident_blocks_turned(kTileType<kOut, kScaled>))
    program_turned_kernel(const __grid_constant__ Batch<kMost> batch) {
  extern __shared__ float shared[];
  for (int l = layer_of(batch, share(batch).begin); reaches(batch, share(batch), l); ++l) {
    const Program p = program_in<kPathFast, kOut>(batch, l);
    const Table table = staged_table<kTileThreads>(p, shared);
    if (!(octets_of(p) > 0)) {  // an irregular step makes all weights the same, in any order
      const Range blocks = blocks_in(batch, share(batch), l);
#pragma unroll 1
      for (int64_t block = blocks.begin + threadIdx.x; block < blocks.end; block += kTileThreads)
        program_block<kPathFast, kOut>(p, table, block, blockIdx.y, gridDim.y);
      continue;
    }
    const Range tiles = tiles_in(blocks_in(batch, share(batch), l), p.taps);
    auto* const memory = (typename Stored<kTileType<kOut, kScaled>>::Type*)(shared + tile_offset(batch.table_bytes));
    if (table.constant)
      program_tiles<kOut, true, kScaled>(p, table, tiles, memory);
    else
      program_tiles<kOut, false, kScaled>(p, table, tiles, memory);
  }
}

// As many thread blocks as the current device holds at once (`resident` a multiprocessor): `x` for the weights, and where these are
// few, `y` for the chips. `works`: what one thread block does in one round of its threads, for all weights.
cudaError_t grid_for(int64_t works, int64_t chips, int resident, dim3* grid) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t most = std::max<int64_t>(1, (int64_t)multiprocessors * resident);
  const int64_t x = std::max<int64_t>(1, std::min(works, most));
  const int64_t y = std::max<int64_t>(1, std::min<int64_t>({chips, most / x, 65535}));
  *grid = dim3((unsigned)x, (unsigned)y);
  return error;
}

// Of kThreads, a block of four weights each. Octets are counted so too, or few weights would keep few multiprocessors busy.
int64_t works_of(int64_t strips) { return (strips * kStrip + kThreads - 1) / kThreads; }

Batch<1> only_layer(const Batch<kMostLayers>& b) { return {b.keys, b.chips, b.each, b.more, 1, b.table_bytes, {b.layer[0]}}; }

cudaError_t launch_steps(Batch<kMostLayers>& batch, float* step, cudaStream_t stream) {
  dim3 grid;
  const cudaError_t error = grid_for(works_of(strips_of(batch)), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  deal(batch, grid.x);
  uint32_t* largest = reinterpret_cast<uint32_t*>(step);
  if (batch.count == 1) {
    largest_kernel<<<grid, kThreads, 0, stream>>>(only_layer(batch), largest);
    step_kernel<<<1, 1, 0, stream>>>(only_layer(batch), step);
  } else {
    largest_kernel<<<grid, kThreads, 0, stream>>>(batch, largest);
    step_kernel<<<1, kMostLayers, 0, stream>>>(batch, step);
  }
  return cudaGetLastError();
}

struct Shape {
  dim3 grid;
  size_t shared_bytes;
  cudaStream_t stream;
};

template <int kPath, OutType kOut, bool kStaged>
cudaError_t launch(const Batch<kMostLayers>& batch, const Shape& s) {
  if (batch.count == 1)
    program_kernel<kPath, kOut, kStaged><<<s.grid, kThreads, s.shared_bytes, s.stream>>>(only_layer(batch));
  else
    program_kernel<kPath, kOut, kStaged><<<s.grid, kThreads, s.shared_bytes, s.stream>>>(batch);
  return cudaGetLastError();
}

template <int kPath, OutType kOut>
cudaError_t launch(const Batch<kMostLayers>& batch, const Kind& kind, const Shape& shape) {
  if (kPath != kPathOff && kind.staged) return launch<kPath, kOut, kPath != kPathOff>(batch, shape);
  return launch<kPath, kOut, false>(batch, shape);
}

template <int kPath>
cudaError_t launch(const Batch<kMostLayers>& batch, const Kind& kind, const Shape& shape) {
  switch (kind.out_type) {
    case OutType::kBFloat16: return launch<kPath, OutType::kBFloat16>(batch, kind, shape);
    case OutType::kFloat16: return launch<kPath, OutType::kFloat16>(batch, kind, shape);
    default: return launch<kPath, OutType::kFloat32>(batch, kind, shape);
  }
}

template <OutType kOut, bool kScaled>
cudaError_t launch_turned(const Batch<kMostLayers>& batch, const Shape& s) {
  if (batch.count == 1)
    program_turned_kernel<kOut, kScaled><<<s.grid, kTileThreads, s.shared_bytes, s.stream>>>(only_layer(batch));
  else
    program_turned_kernel<kOut, kScaled><<<s.grid, kTileThreads, s.shared_bytes, s.stream>>>(batch);
  return cudaGetLastError();
}

template <OutType kOut>
cudaError_t launch_turned(const Batch<kMostLayers>& batch, const Kind& kind, Shape s) {
  const bool floats = kind.scaled || kOut == OutType::kFloat32;
  s.shared_bytes = 4 * tile_offset(batch.table_bytes) + kTileWeights * (floats ? 4 : 2);
  return kind.scaled ? launch_turned<kOut, true>(batch, s) : launch_turned<kOut, false>(batch, s);
}

cudaError_t launch_programs(Batch<kMostLayers>& batch, const Kind& kind, cudaStream_t stream) {
  Shape shape = {{}, kind.staged ? (size_t)batch.table_bytes : 0, stream};
  const int resident = kind.turned ? resident_blocks_turned(kind.scaled ? OutType::kFloat32 : kind.out_type) : resident_blocks(kind.path, kind.staged);
  const int64_t works = kind.turned ? (strips_of(batch) * kStrip * 4 + kTileWeights - 1) / kTileWeights : works_of(strips_of(batch));
  const cudaError_t error = grid_for(works, batch.chips, resident, &shape.grid);
  if (error != cudaSuccess) return error;
  deal(batch, shape.grid.x);
  if (kind.turned) {
    if (kind.out_type == OutType::kBFloat16) return launch_turned<OutType::kBFloat16>(batch, kind, shape);
    if (kind.out_type == OutType::kFloat16) return launch_turned<OutType::kFloat16>(batch, kind, shape);
    return launch_turned<OutType::kFloat32>(batch, kind, shape);
  }
  if (kind.path == kPathFast) return launch<kPathFast>(batch, kind, shape);
  if (kind.path == kPathDevice) return launch<kPathDevice>(batch, kind, shape);
  return launch<kPathOff>(batch, kind, shape);
}

}  // namespace

cudaError_t weight_step_many(const Program* programs, int count, float* step, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(step, 0, count * sizeof *step, stream);  // the identity of the maximum
  if (error != cudaSuccess) return error;
  return in_batches(programs, count, [](const Program&) { return true; }, [&](Batch<kMostLayers>& batch) {
    const cudaError_t launched = launch_steps(batch, step, stream);
    step += batch.count;
    return launched;
  });
}

cudaError_t weight_step(const float* weight, int64_t n, int weight_bits, float* step, cudaStream_t stream) {
  Program p = {};
  p.weight = weight;
  p.n = n;
  p.weight_bits = weight_bits;
  return weight_step_many(&p, 1, step, stream);
}

cudaError_t quantize(const float* weight, int64_t n, const float* step, int weight_bits, void* codes, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  dim3 grid;
  const cudaError_t error = grid_for(works_of(strips_of(n)), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  if (weight_bits <= 15)
    quantize_kernel<<<grid, kThreads, 0, stream>>>(weight, n, step, weight_bits, static_cast<int16_t*>(codes));
  else
    quantize_kernel<<<grid, kThreads, 0, stream>>>(weight, n, step, weight_bits, static_cast<int32_t*>(codes));
  return cudaGetLastError();
}

cudaError_t program_many(const Program* programs, int count, cudaStream_t stream) {
  for (int i = 1; i < count; ++i)
    if (programs[i].keys != programs[0].keys || programs[i].chips != programs[0].chips) return cudaErrorInvalidValue;
  return in_batches_of_a_kind(programs, count, [&](const Kind& kind, Batch<kMostLayers>& batch) {
    return launch_programs(batch, kind, stream);
  });
}

cudaError_t program(const Program& p, cudaStream_t stream) { return program_many(&p, 1, stream); }

}  // namespace cuda
}  // namespace nft
