// The noisy 2-d convolution: x [N, C, H, W] (N = B, or S * B chip-major), weight [out, C / groups, kh, kw] -> [S * B,
// out, oh, ow]. Gradients as in operators/linear.h.
#pragma once

#include "core/convolution_size.h"
#include "operators/epilogue.h"
#include "operators/per_chip.h"

namespace nft {

// Bound of sizes, strides, paddings and dilations: sums of a few and products of two then fit int64. Python has it too.
constexpr int64_t kMostGeometry = (int64_t(1) << 30) - 1;

inline void check_geometry(const char* op, const char* argument, const Ints& pair, int64_t least, const char* rule) {
  bool holds = pair.size() == 2;
  for (int64_t value : pair) holds = holds && value >= least && value <= kMostGeometry;
  check(holds, op, argument, rule, pair);
}

inline void check_conv2d(const Crossbar& c, const Tensor& x, const aten::Convolution& p) {
  check_crossbar(c);
  check_x(c, x);
  check(c.weight.dim() == 4, c.op, "weight", "must be [out, C / groups, kh, kw]", c.weight.sizes());
  check(c.weight.numel() > 0, c.op, "weight", "must have no dimension of size 0", c.weight.sizes());
  check(p.groups >= 1 && c.weight.size(0) % p.groups == 0, c.op, "groups", "must divide the output channels", p.groups);
  check(x.dim() == 4 && x.size(1) == c.weight.size(1) * p.groups, c.op, "x",
        "must be [rows, C, H, W] with the weight's C", x.sizes());
  check_geometry(c.op, "stride", p.stride, 1, "must be two ints in 1..2^30 - 1");
  check_geometry(c.op, "padding", p.padding, 0, "must be two ints in 0..2^30 - 1");
  check_geometry(c.op, "dilation", p.dilation, 1, "must be two ints in 1..2^30 - 1");
  for (int i = 0; i < 2; ++i) {
    const int64_t size = x.size(2 + i), kernel = c.weight.size(2 + i);
    check(size >= 1 && size <= kMostGeometry, c.op, "x", "must have a height and a width in 1..2^30 - 1", x.sizes());
    check(kernel <= kMostGeometry, c.op, "weight", "must have a kernel below 2^30", c.weight.sizes());
    const int64_t padded = size + 2 * p.padding[i], reach = p.dilation[i] * (kernel - 1) + 1;
    if (padded >= reach) continue;
    std::ostringstream rule;
    rule << "padded " << (i ? "width" : "height") << " must be at least the kernel's " << reach;
    check(false, c.op, "x", rule.str().c_str(), padded);
  }
}

inline Ints conv2d_result(const Crossbar& c, const Tensor& x, const aten::Convolution& p, bool shared) {
  Ints result{for_all_chips(c.op, c.chips(), rows_per_chip(c.op, x, c.chips(), shared)), c.weight.size(0)};
  for (int i = 0; i < 2; ++i)
    result.push_back(
        generic::convolution_size(x.size(2 + i), c.weight.size(2 + i), p.stride[i], p.padding[i], p.dilation[i]));
  elements_of(result);  // refuses what overflows
  return result;
}

template <class Backend>
Tensor conv2d_product(Crossbar c, const Tensor& x, const std::optional<Tensor>& bias, const aten::Convolution& p,
                      bool shared, const Epilogue& e = {}) {
  check_conv2d(c, x, p);
  check_epilogue(c, e, x, conv2d_result(c, x, p, shared));
  c.weight = Backend::readable(c.weight);
  const auto b = cast_bias(c.op, bias, c.weight, x.scalar_type());
  Backend::check_values(c);
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
      sizes[0] = for_all_chips(c.op, chips, sizes[0]);
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
  Backend::check_values(c);
  const bool channels_last = aten::is_channels_last(x);
  Tensor grad_x = aten::empty({0}, x.scalar_type(), x), grad_w = aten::empty({0}, ScalarType::Float, x),
         grad_b = aten::empty({0}, ScalarType::Float, x);
  const Tensor programmed = Backend::weights(c, 1, x.scalar_type(), channels_last);
  bool together = false;  // x's gradient of a single chip comes from the same call as the weight's
  if (mask[0]) {
    if (const auto one_pass = Backend::input_gradient(c, grad, x, p)) {
      grad_x = *one_pass;
    } else if (chips == 1 && mask[1]) {
      together = true;
      Backend::program(c, programmed, 0, 1);
    } else {
      grad_x = conv2d_input_gradient<Backend>(c, grad, x, p, shared, programmed);
    }
    if (shared && chips > 1) grad_x = aten::in_format(sum_over_chips(grad_x, chips), channels_last);
  }
  if (mask[1] || mask[2]) {
    const Tensor total = shared ? sum_over_chips(grad, chips) : grad;
    auto grads = Backend::convolution_backward(total, x, programmed, p, {together, mask[1], mask[2]});
    if (together) grad_x = aten::in_format(aten::cast(std::get<0>(grads), x.scalar_type()), channels_last);
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
                                   {stride, padding, dilation, groups}, shared,
                                   mask_of("noisy_conv2d_backward", wanted));
}

}  // namespace operators
}  // namespace nft
