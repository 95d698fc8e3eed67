// The noisy 2-d convolution: x [N, C, H, W] (N = B, or S * B chip-major), weight [out, C / groups, kh, kw] -> [S * B,
// out, oh, ow]. Gradients as in operators/linear.h.
#pragma once

#include "core/convolution_size.h"
#include "operators/epilogue.h"
#include "operators/per_chip.h"

namespace nft {

inline void check_conv2d(const Crossbar& c, const Tensor& x, const aten::Convolution& p) {
  check_crossbar(c);
  check_x(c, x);
  check(c.weight.dim() == 4, c.op, "weight", "must be [out, C / groups, kh, kw]", c.weight.sizes());
  check(p.groups >= 1 && c.weight.size(0) % p.groups == 0, c.op, "groups", "must divide the output channels", p.groups);
  check(x.dim() == 4 && x.size(1) == c.weight.size(1) * p.groups, c.op, "x",
        "must be [rows, C, H, W] with the weight's C", x.sizes());
  check(p.stride.size() == 2 && p.stride[0] > 0 && p.stride[1] > 0, c.op, "stride", "must be two positive ints",
        p.stride);
  check(p.padding.size() == 2 && p.padding[0] >= 0 && p.padding[1] >= 0, c.op, "padding", "must be two ints >= 0",
        p.padding);
  check(p.dilation.size() == 2 && p.dilation[0] > 0 && p.dilation[1] > 0, c.op, "dilation", "must be two positive ints",
        p.dilation);
}

inline Ints conv2d_result(const Crossbar& c, const Tensor& x, const aten::Convolution& p, bool shared) {
  Ints result{c.chips() * rows_per_chip(c.op, x, c.chips(), shared), c.weight.size(0)};
  for (int i = 0; i < 2; ++i)
    result.push_back(
        generic::convolution_size(x.size(2 + i), c.weight.size(2 + i), p.stride[i], p.padding[i], p.dilation[i]));
  return result;
}

template <class Backend>
Tensor conv2d_product(Crossbar c, const Tensor& x, const std::optional<Tensor>& bias, const aten::Convolution& p,
                      bool shared, const Epilogue& e = {}) {
  check_conv2d(c, x, p);
  c.weight = Backend::readable(c.weight);
  const auto b = cast_bias(c.op, bias, c.weight, x.scalar_type());
  if (!e.empty()) check_epilogue(c, e, x, conv2d_result(c, x, p, shared));
  if (const auto y = Backend::product(c, x, b, p, shared, e)) return *y;
  const Tensor y =
      for_each_chip<Backend>(c, x, shared, aten::is_channels_last(x),
                             [&](const Tensor& rows, const Tensor& w) { return aten::convolution(rows, w, b, p); });
  if (!e.empty()) Backend::epilogue(c.op, y, e);
  return y;
}

// Each chip's gradient with respect to its x, by torch, chip-major. `programmed` is memory for one chip's weights.
template <class Backend>
Tensor conv2d_input_gradient(Crossbar& c, const Tensor& grad, const Tensor& x, const aten::Convolution& p, bool shared,
                             const Tensor& programmed) {
  const int64_t chips = c.chips(), rows = rows_per_chip(c.op, x, chips, shared);
  const bool channels_last = aten::is_channels_last(x);
  std::optional<Tensor> all;
  for (int64_t chip = 0; chip < chips; ++chip) {
    Backend::program(c, programmed, chip, 1);
    const Tensor part = aten::cast(std::get<0>(Backend::convolution_backward(rows_of(grad, chip, rows, false, chips),
                                                                             rows_of(x, chip, rows, shared, chips),
                                                                             programmed, p, {true, false, false})),
                                   x.scalar_type());
    if (chips == 1) return aten::in_format(part, channels_last);
    if (!all) {
      Ints sizes = sizes_of(part);
      sizes[0] *= chips;
      all = aten::empty(sizes, x.scalar_type(), x, channels_last && !shared);
    }
    Tensor slot = torch::stable::narrow(*all, 0, chip * rows, rows);
    torch::stable::copy_(slot, part);
  }
  return *all;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> conv2d_gradients(Crossbar c, const Tensor& grad, const Tensor& x,
                                                    const aten::Convolution& p, bool shared, std::array<bool, 3> mask) {
  check_conv2d(c, x, p);
  c.weight = Backend::readable(c.weight);
  const int64_t chips = c.chips();
  check_like_result(c, "grad", grad, x, conv2d_result(c, x, p, shared));
  const bool channels_last = aten::is_channels_last(x);
  Tensor grad_x = aten::empty({0}, x.scalar_type(), x), grad_w = aten::empty({0}, ScalarType::Float, x),
         grad_b = aten::empty({0}, ScalarType::Float, x);
  const Tensor programmed = Backend::weights(c, 1, x.scalar_type(), channels_last);
  if (mask[0]) {
    const auto one_pass = Backend::input_gradient(c, grad, x, p);
    grad_x = one_pass ? *one_pass : conv2d_input_gradient<Backend>(c, grad, x, p, shared, programmed);
    if (shared && chips > 1) grad_x = aten::in_format(sum_over_chips(grad_x, chips), channels_last);
  }
  if (mask[1] || mask[2]) {
    const Tensor total = shared ? sum_over_chips(grad, chips) : grad;
    auto grads = Backend::convolution_backward(total, x, programmed, p, {false, mask[1], mask[2]});
    if (mask[1]) grad_w = aten::in_format(aten::cast(std::get<1>(grads), ScalarType::Float), false);
    if (mask[2]) grad_b = aten::cast(std::get<2>(grads), ScalarType::Float);
  }
  return {grad_x, grad_w, grad_b};
}

// ---- as the schemas spell them

namespace operators {

template <class Backend>
Tensor noisy_conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> codes,
                    std::optional<Tensor> step, Tensor table, Tensor key, int64_t stream, Ints spec, Ints stride,
                    Ints padding, Ints dilation, int64_t groups, bool shared) {
  return conv2d_product<Backend>({"noisy_conv2d", weight, codes, step, table, key, stream, spec}, x, bias,
                                 {stride, padding, dilation, groups}, shared);
}

template <class Backend>
Tensor noisy_conv2d_fused(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> codes,
                          std::optional<Tensor> step, Tensor table, Tensor key, int64_t stream, Ints spec, Ints stride,
                          Ints padding, Ints dilation, int64_t groups, bool shared, std::optional<Tensor> scale,
                          std::optional<Tensor> shift, std::optional<Tensor> residual, bool relu) {
  return conv2d_product<Backend>({"noisy_conv2d_fused", weight, codes, step, table, key, stream, spec}, x, bias,
                                 {stride, padding, dilation, groups}, shared, {scale, shift, residual, relu});
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> noisy_conv2d_backward(Tensor grad, Tensor x, Tensor weight,
                                                         std::optional<Tensor> codes, std::optional<Tensor> step,
                                                         Tensor table, Tensor key, int64_t stream, Ints spec,
                                                         Ints stride, Ints padding, Ints dilation, int64_t groups,
                                                         bool shared, int64_t wanted) {
  return conv2d_gradients<Backend>({"noisy_conv2d_backward", weight, codes, step, table, key, stream, spec}, grad, x,
                                   {stride, padding, dilation, groups}, shared, mask_of(wanted));
}

}  // namespace operators
}  // namespace nft
