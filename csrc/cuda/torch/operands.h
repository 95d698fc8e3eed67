// From an operator's tensors to the kernels' pointers: one layer's weights, its product's shape and its epilogue.
#pragma once

#include "core/convolution_size.h"
#include "cuda/one_pass/one_pass.h"
#include "cuda/sampler/channels_last.h"
#include "cuda/sampler/sampler.h"
#include "cuda/torch/device_guard.h"
#include "operators/epilogue.h"

namespace nft {

inline cuda::OutType out_type(const Tensor& out) {
  switch (out.scalar_type()) {
    case ScalarType::BFloat16:
      return cuda::OutType::kBFloat16;
    case ScalarType::Half:
      return cuda::OutType::kFloat16;
    default:
      return cuda::OutType::kFloat32;
  }
}

// s = fl(max|W| / (2^M - 1)) of the weights that share it; NaN if one of them is not finite, since an error would have
// to wait for the device.
inline Tensor weight_step(Tensor weight, int64_t weight_bits, Ints scaling) {
  check_quantizer("weight_step", weight, weight_bits);
  const Scaling s = scaling_of("weight_step", weight, scaling);
  const DeviceGuard here(weight);
  const Tensor dense = aten::contiguous(aten::cast(weight, ScalarType::Float));
  const bool one = generic::one_step(s);
  Tensor step = aten::empty(one ? Ints{} : step_sizes(s, scaling.data()), ScalarType::Float, weight);
  float* const out = static_cast<float*>(step.data_ptr());
  if (one)
    STD_CUDA_CHECK(cuda::weight_step(floats(dense), dense.numel(), (int)weight_bits, out, here.stream()));
  else
    STD_CUDA_CHECK(cuda::weight_steps(floats(dense), dense.numel(), s, (int)weight_bits, out, here.stream()));
  return step;
}

// A crossbar's scaling, an argument of weight_step and quantize.
inline Ints scaling_numbers(const Crossbar& c) { return Ints(c.spec.begin() + kDeviceInts, c.spec.end()); }

inline void find_step(Crossbar& c) {
  if (!c.step) c.step = weight_step(c.weight, c.spec[0], scaling_numbers(c));
}

// The sampler's view of a crossbar, without its result; finds the
// step if none is given. `dense` keeps a copy of the weight alive.
inline cuda::Program program_of(Crossbar& c, Tensor& dense) {
  check(c.weight.is_cuda(), c.op, "weight", "must be on CUDA like the other tensors", "another device");
  find_step(c);
  dense = c.codes ? c.weight : aten::contiguous(c.weight);
  cuda::Program p = {};
  p.n = c.weight.numel();
  p.weight = c.codes ? nullptr : floats(dense);
  p.codes = c.codes ? c.codes->data_ptr() : nullptr;
  p.weight_bits = (int)c.spec[0];
  p.device_bits = (int)c.spec[1];
  p.code_bytes = code_type(p.weight_bits) == ScalarType::Short ? 2 : 4;
  p.path = (int)c.spec[2];
  p.mapping = (int)c.spec[3];
  p.step = floats(*c.step);
  p.table = floats(c.table);
  p.keys = static_cast<const int64_t*>(c.key.data_ptr());
  p.chips = c.chips();
  p.stream = (uint32_t)c.stream;
  return p;
}

// Whether a convolution's weights may be programmed channels last. Python's fake kernel has the same rule.
inline bool can_be_channels_last(const Crossbar& c) {
  return generic::one_step(scaling_of(c)) && c.weight.dim() == 4 && c.spec[2] == generic::kPathFast &&
         2 * sizeof(float) << c.spec[0] <= generic::kChannelsLastTableBytes &&
         generic::fits_channels_last(c.weight.numel(), c.weight.size(1), c.weight.size(2) * c.weight.size(3));
}

// A row of float32 numbers, dense in `holder`; null if there is none.
inline const float* dense_floats(const std::optional<Tensor>& t, std::optional<Tensor>& holder) {
  if (!t) return nullptr;
  holder = aten::contiguous(*t);
  return floats(*holder);
}

// [chips, images, channels, y, x] of a tensor [chips * images or images, channels(, y, x)].
inline cuda::Strides strides_of(const Tensor& t, int64_t images, bool shared) {
  const bool image = t.dim() == 4;
  return {shared ? 0 : images * t.stride(0), t.stride(0), t.stride(1), image ? t.stride(2) : 0,
          image ? t.stride(3) : 0};
}

// ---- one-pass products

// A product as the kernels take it, and the tensors that its pointers point into.
struct LayerProduct {
  cuda::OnePassProduct f = {};
  int64_t columns = 0;  // per chip
  Ints sizes;           // of the result
  Tensor weight;
  std::optional<Tensor> bias, scale, shift;
};

// A product that gathers `seen`, of which each chip sees `images`, into `rows` channels of `out` pixels; none if a size
// is out of reach of 32-bit coordinates.
inline std::optional<LayerProduct> product_of(const Crossbar& c, const Tensor& seen, int64_t images, int64_t rows,
                                              std::array<int64_t, 2> out, const aten::Convolution& p) {
  constexpr int64_t kMost = int64_t(1) << 29;
  const bool image = seen.dim() == 4;
  bool fits = rows < kMost && (double)images * (double)out[0] * (double)out[1] < 0x1p62;
  for (int i = 1; i < seen.dim(); ++i) fits = fits && seen.size(i) < kMost;
  for (int i = 0; i < 2; ++i)
    fits = fits && out[i] < kMost && p.stride[i] < kMost && p.padding[i] < kMost && p.dilation[i] < kMost;
  if (!fits) return std::nullopt;
  LayerProduct layer;
  layer.weight = c.weight;
  layer.columns = images * out[0] * out[1];
  layer.sizes = {c.chips() * images, rows};
  if (image) layer.sizes.insert(layer.sizes.end(), {out[0], out[1]});
  cuda::OnePassProduct& f = layer.f;
  f.images = images;
  f.channels = (int)seen.size(1);
  f.height = image ? (int)seen.size(2) : 1;
  f.width = image ? (int)seen.size(3) : 1;
  f.rows = (int)rows;
  f.groups = (int)p.groups;
  for (int i = 0; i < 2; ++i) {
    f.kernel[i] = image ? (int)c.weight.size(2 + i) : 1;
    f.stride[i] = (int)p.stride[i];
    f.padding[i] = (int)p.padding[i];
    f.dilation[i] = (int)p.dilation[i];
    f.out[i] = (int)out[i];
  }
  return layer;
}

// The forward.
inline std::optional<LayerProduct> forward_product(const Crossbar& c, const Tensor& x, const aten::Convolution& p,
                                                   bool shared) {
  std::array<int64_t, 2> out{1, 1};
  if (x.dim() == 4)
    for (int i = 0; i < 2; ++i)
      out[i] = generic::convolution_size(x.size(2 + i), c.weight.size(2 + i), p.stride[i], p.padding[i], p.dilation[i]);
  return product_of(c, x, rows_per_chip(c.op, x, c.chips(), shared), c.weight.size(0), out, p);
}

// The gradient with respect to x: it gathers `grad` into x's channels and pixels.
inline std::optional<LayerProduct> gradient_product(const Crossbar& c, const Tensor& grad, const Tensor& x,
                                                    const aten::Convolution& p) {
  std::array<int64_t, 2> out{1, 1};
  if (x.dim() == 4) out = {x.size(2), x.size(3)};
  return product_of(c, grad, grad.size(0) / c.chips(), x.size(1), out, p);
}

inline void set_epilogue(LayerProduct& layer, const Crossbar& c, const std::optional<Tensor>& bias,
                         const Epilogue& epilogue) {
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
