// The operators' products of 8-bit numbers (csrc/core/int8.h) on CUDA, by the fused kernel for every shape.
#pragma once

#include <algorithm>

#include "operands.h"

namespace nft {

// x in 8 bits, dense, and what it is worth.
struct RoundedInput {
  Tensor dense, rounded, largest, unit;
};

// Three launches at most; `f.program` is complete. The bytes lie as x's memory format says, and channels-last where f.by_tap.
inline RoundedInput round_input(const cuda::Fused& f, const Tensor& x, cudaStream_t stream) {
  const bool channels_last = aten::is_channels_last(x), turns = f.by_tap && x.dim() == 4 && !channels_last;
  const int64_t images = x.size(0);
  RoundedInput in = {x.dim() == 4 ? aten::in_format(x, channels_last) : aten::contiguous(x),
                     aten::empty(sizes_of(x), ScalarType::Char, x, channels_last || turns), aten::empty({images}, ScalarType::Float, x),
                     aten::empty({}, ScalarType::Float, x)};
  cuda::Images m = {in.dense.data_ptr(), out_type(x), images, images ? x.numel() / images : 0,
                    static_cast<float*>(in.largest.data_ptr()), static_cast<int8_t*>(in.rounded.data_ptr())};
  if (turns) m.channels = f.channels, m.places = (int64_t)f.height * f.width;
  STD_CUDA_CHECK(cuda::measure_images(m, f.program, static_cast<float*>(in.unit.data_ptr()), stream));
  STD_CUDA_CHECK(cuda::round_images(m, stream));
  return in;
}

inline void run_int8(const cuda::Fused& f, const Tensor& like, cudaStream_t stream) {
  cuda::Plan plan = {};
  STD_CUDA_CHECK(cuda::int8_plan(f, &plan));
  const auto sums = memory_for(plan, like);
  STD_CUDA_CHECK(cuda::int8_product(f, plan, floats_of(sums), stream));
}

// The product of chips [first, first + count) alone.
inline cuda::Fused part_of(const cuda::Fused& f, int64_t first, int64_t count, int64_t bytes) {
  cuda::Fused part = f;
  part.program.keys += 2 * first;
  part.program.chips = count;
  part.x = static_cast<const int8_t*>(f.x) + first * f.x_strides.chip;
  part.y = static_cast<char*>(f.y) + first * f.y_strides.chip * bytes;
  part.x_largest += first * f.x_largest_chip;
  if (f.epilogue.residual)
    part.epilogue.residual = static_cast<const char*>(f.epilogue.residual) + first * f.epilogue.residual_strides.chip * bytes;
  return part;
}

// Weights are generated on the way for up to `most` columns a chip; beyond, as many chips as 256 MiB hold are programmed
// first, and read by every tile of columns. Where a group's channels are a multiple of sixteen, that many are read at once,
// for which weights of more than one place are turned, half of the 256 MiB to the other. The results are the same bits.
inline Tensor int8_product(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias, const aten::Convolution& p, bool shared,
                           const Epilogue& epilogue, int64_t most) {
  check_product(c, x, epilogue);
  auto layer = product_of(c, x, p, shared);
  check(layer && cuda::can_fuse(layer->f), c.op, "x and the geometry", "must have sizes below 2^29 but for dim 0", x.sizes());
  cuda::Fused& f = layer->f;
  f.program = program_of(c, layer->weight);
  const OnDevice here(c.weight);
  const bool stores = layer->columns > most && f.program.n > 0;
  f.by_tap = stores && generic::channels_fill_vectors(f);
  const RoundedInput in = round_input(f, x, here.stream());
  const Tensor y = aten::empty(layer->sizes, x.scalar_type(), x, aten::is_channels_last(x));
  follow(*layer, c, bias, epilogue);
  f.program.scale = floats(in.unit);
  f.x = in.rounded.data_ptr();
  f.x_type = cuda::OutType::kInt8;
  f.x_strides = strides_of(in.rounded, f.images, shared);
  f.x_largest = floats(in.largest);
  f.x_largest_chip = shared ? 0 : f.images;
  f.y = y.data_ptr();
  f.y_type = out_type(x);
  f.y_strides = strides_of(y, f.images, false);
  if (!stores) {
    run_int8(f, c.weight, here.stream());
    return y;
  }
  const bool turns = f.by_tap && f.kernel[0] * f.kernel[1] > 1;
  const int64_t chips = c.chips(), bytes_a_chip = (turns ? 2 : 1) * f.program.n;
  const int64_t together = std::max<int64_t>(1, std::min(chips, (int64_t(256) << 20) / bytes_a_chip));
  const Tensor stored = aten::empty({together, f.program.n}, ScalarType::Char, x);
  const Tensor turned = turns ? aten::empty({together, f.program.n}, ScalarType::Char, x) : stored;
  const int64_t bytes = f.y_type == cuda::OutType::kFloat32 ? 4 : 2;
  for (int64_t first = 0; first < chips; first += together) {
    cuda::Fused part = part_of(f, first, std::min(together, chips - first), bytes);
    part.program.out_type = cuda::OutType::kInt8;
    part.program.out = stored.data_ptr();
    STD_CUDA_CHECK(cuda::program(part.program, here.stream()));
    if (turns) STD_CUDA_CHECK(cuda::turn_weights(part, turned.data_ptr(), here.stream()));
    part.program.out = turned.data_ptr();
    run_int8(part, c.weight, here.stream());
  }
  return y;
}

}  // namespace nft
