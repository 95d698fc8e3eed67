// The launches of sampler.h.
#include "cuda/sampler/sampler.h"

#include "cuda/sampler/kernels.h"
#include "cuda/sampler/launch_grid.h"

namespace nft {
namespace cuda {
namespace {

// Rounds of kThreads quads. Eights are counted as quads too, or few weights would keep few multiprocessors busy.
int64_t works_of(int64_t strips) { return (strips * kStrip + kThreads - 1) / kThreads; }

Batch<1> only_layer(const Batch<kMostLayers>& b) {
  return {b.keys, b.chips, b.each, b.more, 1, b.table_bytes, {b.layer[0]}};
}

cudaError_t launch_steps(Batch<kMostLayers>& batch, float* step, cudaStream_t stream) {
  dim3 grid;
  const cudaError_t error = grid_for(works_of(strips_of(batch)), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  set_shares(batch, grid.x);
  uint32_t* largest = reinterpret_cast<uint32_t*>(step);
  if (batch.count == 1) {
    abs_max_kernel<<<grid, kThreads, 0, stream>>>(only_layer(batch), largest);
    step_kernel<<<1, 1, 0, stream>>>(only_layer(batch), step);
  } else {
    abs_max_kernel<<<grid, kThreads, 0, stream>>>(batch, largest);
    step_kernel<<<1, kMostLayers, 0, stream>>>(batch, step);
  }
  return cudaGetLastError();
}

struct Shape {
  dim3 grid;
  size_t shared_bytes;
  cudaStream_t stream;
};

template <int kPath, OutType kOut, bool kTableInShared>
cudaError_t launch(const Batch<kMostLayers>& batch, const Shape& s) {
  if (batch.count == 1)
    program_kernel<kPath, kOut, kTableInShared><<<s.grid, kThreads, s.shared_bytes, s.stream>>>(only_layer(batch));
  else
    program_kernel<kPath, kOut, kTableInShared><<<s.grid, kThreads, s.shared_bytes, s.stream>>>(batch);
  return cudaGetLastError();
}

template <int kPath, OutType kOut>
cudaError_t launch(const Batch<kMostLayers>& batch, const Kind& kind, const Shape& shape) {
  if (kPath != kPathOff && kind.table_in_shared) return launch<kPath, kOut, kPath != kPathOff>(batch, shape);
  return launch<kPath, kOut, false>(batch, shape);
}

template <int kPath>
cudaError_t launch(const Batch<kMostLayers>& batch, const Kind& kind, const Shape& shape) {
  switch (kind.out_type) {
    case OutType::kBFloat16:
      return launch<kPath, OutType::kBFloat16>(batch, kind, shape);
    case OutType::kFloat16:
      return launch<kPath, OutType::kFloat16>(batch, kind, shape);
    default:
      return launch<kPath, OutType::kFloat32>(batch, kind, shape);
  }
}

template <OutType kOut, bool kScaled>
cudaError_t launch_channels_last(const Batch<kMostLayers>& batch, const Shape& s) {
  if (batch.count == 1)
    program_channels_last_kernel<kOut, kScaled><<<s.grid, kTileThreads, s.shared_bytes, s.stream>>>(only_layer(batch));
  else
    program_channels_last_kernel<kOut, kScaled><<<s.grid, kTileThreads, s.shared_bytes, s.stream>>>(batch);
  return cudaGetLastError();
}

template <OutType kOut>
cudaError_t launch_channels_last(const Batch<kMostLayers>& batch, const Kind& kind, Shape s) {
  const bool floats = kind.scaled || kOut == OutType::kFloat32;
  s.shared_bytes = 4 * tile_offset(batch.table_bytes) + kTileWeights * (floats ? 4 : 2);
  return kind.scaled ? launch_channels_last<kOut, true>(batch, s) : launch_channels_last<kOut, false>(batch, s);
}

cudaError_t launch_programs(Batch<kMostLayers>& batch, const Kind& kind, cudaStream_t stream) {
  Shape shape = {{}, kind.table_in_shared ? (size_t)batch.table_bytes : 0, stream};
  const int resident = kind.channels_last
                           ? resident_blocks_channels_last(kind.scaled ? OutType::kFloat32 : kind.out_type)
                           : resident_blocks(kind.path, kind.table_in_shared);
  const int64_t works = kind.channels_last ? (strips_of(batch) * kStrip * 4 + kTileWeights - 1) / kTileWeights
                                           : works_of(strips_of(batch));
  const cudaError_t error = grid_for(works, batch.chips, resident, &shape.grid);
  if (error != cudaSuccess) return error;
  set_shares(batch, shape.grid.x);
  if (kind.channels_last) {
    if (kind.out_type == OutType::kBFloat16) return launch_channels_last<OutType::kBFloat16>(batch, kind, shape);
    if (kind.out_type == OutType::kFloat16) return launch_channels_last<OutType::kFloat16>(batch, kind, shape);
    return launch_channels_last<OutType::kFloat32>(batch, kind, shape);
  }
  if (kind.path == kPathFast) return launch<kPathFast>(batch, kind, shape);
  if (kind.path == kPathDevice) return launch<kPathDevice>(batch, kind, shape);
  return launch<kPathOff>(batch, kind, shape);
}

}  // namespace

cudaError_t weight_step_many(const Program* programs, int count, float* step, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(step, 0, count * sizeof *step, stream);  // the maximum's identity
  if (error != cudaSuccess) return error;
  return in_batches(
      programs, count, [](const Program&) { return true; },
      [&](Batch<kMostLayers>& batch) {
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

cudaError_t quantize(const float* weight, int64_t n, const float* step, int weight_bits, void* codes,
                     cudaStream_t stream) {
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

cudaError_t check_codes(const void* codes, int64_t n, int weight_bits, const float* step, float* checked,
                        cudaStream_t stream) {
  cudaError_t error = cudaMemcpyAsync(checked, step, sizeof *step, cudaMemcpyDeviceToDevice, stream);
  if (error != cudaSuccess || n == 0) return error;
  dim3 grid;
  error = grid_for(works_of(strips_of(n)), 1, kResident, &grid);
  if (error != cudaSuccess) return error;
  const int top = (1 << weight_bits) - 1;
  if (weight_bits <= 15)
    check_codes_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const int16_t*>(codes), n, top, checked);
  else
    check_codes_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const int32_t*>(codes), n, top, checked);
  return cudaGetLastError();
}

cudaError_t program_many(const Program* programs, int count, cudaStream_t stream) {
  for (int i = 1; i < count; ++i)
    if (programs[i].keys != programs[0].keys || programs[i].chips != programs[0].chips) return cudaErrorInvalidValue;
  return in_batches_per_kind(programs, count, [&](const Kind& kind, Batch<kMostLayers>& batch) {
    return launch_programs(batch, kind, stream);
  });
}

cudaError_t program(const Program& p, cudaStream_t stream) { return program_many(&p, 1, stream); }

}  // namespace cuda
}  // namespace nft
