// From an operator's tensors to the kernels' pointers: one layer's weights, its product's shape and epilogue.
#pragma once

#include "../operators.h"
#include "channels_last.h"
#include "fused.h"
#include "on_device.h"
#include "sampler.h"

namespace nft {

inline void check_beside(const char* op, const char* argument, const Tensor& t, const Tensor& weight) {
  check(t.is_cuda() && t.get_device_index() == weight.get_device_index(), op, argument, "must be on the weight's device",
        "another device");
}

inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

inline cuda::OutType out_type(const Tensor& out) {
  switch (out.scalar_type()) {
    case ScalarType::BFloat16: return cuda::OutType::kBFloat16;
    case ScalarType::Half: return cuda::OutType::kFloat16;
    default: return cuda::OutType::kFloat32;
  }
}

// s = fl(max|W| / (2^M - 1)); NaN where a weight is not finite: an error would have to wait for the device.
inline Tensor weight_step(Tensor weight, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "weight_step", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "weight_step", "weight_bits", "must be in 1..16", weight_bits);
  const OnDevice here(weight);
  const Tensor dense = aten::contiguous(weight);
  Tensor step = aten::empty({}, ScalarType::Float, weight);
  STD_CUDA_CHECK(cuda::weight_step(floats(dense), dense.numel(), (int)weight_bits, static_cast<float*>(step.data_ptr()),
                                   here.stream()));
  return step;
}

// The sampler's view of a crossbar with its step found, without its result. `dense` keeps what must live as long.
inline cuda::Program program_of(Crossbar& c, Tensor& dense) {
  check(c.weight.is_cuda(), c.op, "weight", "must be on CUDA like the other tensors", "another device");
  if (!c.step) c.step = weight_step(c.weight, c.device[0]);
  check_beside(c.op, "step", *c.step, c.weight);
  check_beside(c.op, "table", c.table, c.weight);
  check_beside(c.op, "key", c.key, c.weight);
  if (c.codes) check_beside(c.op, "codes", *c.codes, c.weight);
  dense = c.codes ? c.weight : aten::contiguous(c.weight);
  cuda::Program p = {};
  p.n = c.weight.numel();
  p.weight = c.codes ? nullptr : floats(dense);
  p.codes = c.codes ? c.codes->data_ptr() : nullptr;
  p.weight_bits = (int)c.device[0];
  p.device_bits = (int)c.device[1];
  p.code_bytes = p.weight_bits <= 15 ? 2 : 4;
  p.path = (int)c.device[2];
  p.mapping = (int)c.device[3];
  p.step = floats(*c.step);
  p.table = floats(c.table);
  p.keys = static_cast<const int64_t*>(c.key.data_ptr());
  p.chips = c.chips();
  p.stream = (uint32_t)c.stream;
  return p;
}

// Whether a convolution's weights may be programmed channels last; nft_ext/ops/operators.py has the same rule.
inline bool can_be_channels_last(const Crossbar& c) {
  return c.weight.dim() == 4 && c.device[2] == generic::kPathFast && 2 * sizeof(float) << c.device[0] <= generic::kTurnedTableBytes &&
         generic::can_turn(c.weight.numel(), c.weight.size(1), c.weight.size(2) * c.weight.size(3));
}

// A row of float32 numbers, dense in `holder`; null where there is none.
inline const float* dense_floats(const std::optional<Tensor>& t, std::optional<Tensor>& holder) {
  if (!t) return nullptr;
  holder = aten::contiguous(*t);
  return floats(*holder);
}

// [chips, images, channels, y, x] of a tensor [chips * images or images, channels(, y, x)].
inline cuda::Strides strides_of(const Tensor& t, int64_t images, bool shared) {
  const bool image = t.dim() == 4;
  return {shared ? 0 : images * t.stride(0), t.stride(0), t.stride(1), image ? t.stride(2) : 0, image ? t.stride(3) : 0};
}

// The sums of parts of a fused product's tiles.
inline std::optional<Tensor> memory_for(const cuda::Plan& plan, const Tensor& like) {
  if (plan.floats == 0) return std::nullopt;
  return aten::empty({plan.floats}, ScalarType::Float, like);
}

inline float* floats_of(const std::optional<Tensor>& t) { return t ? static_cast<float*>(t->data_ptr()) : nullptr; }

// ---- a layer's product

constexpr int64_t kMostSize = int64_t(1) << 29;  // coordinates are 32-bit

// As the kernels take it, and what its pointers need to live.
struct LayerProduct {
  cuda::Fused f = {};
  int64_t columns = 0;  // that a chip sees
  Ints sizes;           // of the result
  Tensor weight;
  std::optional<Tensor> bias, scale, shift;
};

inline void check_product(const Crossbar& c, const Tensor& x, const Epilogue& epilogue) {
  for (const auto& t : {epilogue.scale, epilogue.shift, epilogue.residual})
    if (t) check_beside(c.op, "scale, shift and residual", *t, c.weight);
  check(x.is_cuda() && c.weight.is_cuda() && x.get_device_index() == c.weight.get_device_index(), c.op, "x",
        "must be on the weight's device", "another device");
}

// Sizes and geometry; nothing where a size is out of reach, or where there is no result.
inline std::optional<LayerProduct> product_of(const Crossbar& c, const Tensor& x, const aten::Convolution& p, bool shared) {
  const bool image = x.dim() == 4;
  bool fits = c.weight.size(0) < kMostSize;
  for (int i = 1; i < x.dim(); ++i) fits = fits && x.size(i) < kMostSize;
  for (int i = 0; i < 2; ++i) fits = fits && p.stride[i] < kMostSize && p.padding[i] < kMostSize && p.dilation[i] < kMostSize;
  if (!fits) return std::nullopt;
  LayerProduct layer;
  layer.weight = c.weight;
  cuda::Fused& f = layer.f;
  f.images = rows_per_chip(c.op, x, c.chips(), shared);
  f.channels = (int)x.size(1);
  f.rows = (int)c.weight.size(0);
  f.groups = (int)p.groups;
  layer.columns = f.images;
  layer.sizes = {c.chips() * f.images, c.weight.size(0)};
  for (int i = 0; i < 2; ++i) {
    const int64_t size = image ? x.size(2 + i) : 1, kernel = image ? c.weight.size(2 + i) : 1;
    const int64_t out = (size + 2 * p.padding[i] - p.dilation[i] * (kernel - 1) - 1) / p.stride[i] + 1;
    if (out <= 0) return std::nullopt;  // the library says what is wrong
    (i ? f.width : f.height) = (int)size;
    f.kernel[i] = (int)kernel;
    f.stride[i] = (int)p.stride[i];
    f.padding[i] = (int)p.padding[i];
    f.dilation[i] = (int)p.dilation[i];
    f.out[i] = (int)out;
    layer.columns *= out;
    if (image) layer.sizes.push_back(out);
  }
  return layer;
}

// What follows the product.
inline void follow(LayerProduct& layer, const Crossbar& c, const std::optional<Tensor>& bias, const Epilogue& epilogue) {
  cuda::Epilogue& e = layer.f.epilogue;
  if (bias) {
    check_beside(c.op, "bias", *bias, c.weight);
    layer.bias = aten::contiguous(aten::cast(*bias, ScalarType::Float));
    e.bias = floats(*layer.bias);
  }
  e.scale = dense_floats(epilogue.scale, layer.scale);
  e.shift = dense_floats(epilogue.shift, layer.shift);
  if (epilogue.residual) {
    e.residual = epilogue.residual->data_ptr();
    e.residual_strides = strides_of(*epilogue.residual, layer.f.images, false);
  }
  e.relu = epilogue.relu;
}

}  // namespace nft
