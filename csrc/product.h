// Noisy linear and conv2d, forward and straight-through backward, for any backend that can program a crossbar.
//
// A backend may do a forward, or the gradient with respect to x, in one go (Backend::product, Backend::input_gradient); what it
// leaves is done here: a forward programs one chip's weights into memory that the next chip and the next call reuse, multiplies, and
// forgets them; the backward programs the same chip again from its key. No noisy weight outlives a call.
//
// Straight-through (design, section 2): dL/dW = dL/dW_p and dL/dx uses W_p. The weight's gradient does not depend on the
// weight, so one product over all chips' rows gives it; only dL/dx needs each chip's weights.
#pragma once

#include "aten.h"

namespace nft {

// One layer's weights and noise as an operator receives them.
struct Crossbar {
  const char* op;
  Tensor weight;
  std::optional<Tensor> codes;
  std::optional<Tensor> step;  // none: found by the first Backend::program, from all weights
  Tensor table, key;
  int64_t stream;
  Ints device;  // weight_bits, device_bits, path, mapping
  std::optional<float> found = {};  // the step, once the CPU has found it: no tensor is made for it

  int64_t chips() const { return key.size(0); }
};

// What follows the product: relu((W_p x + bias) * scale + shift + residual), for inference. Each operation is one of float32,
// rounded by itself. A fused product does them on its sums and rounds to the result's type once; the library's results have
// been rounded to that type before.
struct Epilogue {
  std::optional<Tensor> scale, shift;  // [out] float32
  std::optional<Tensor> residual;      // the result's shape and dtype
  bool relu = false;

  bool empty() const { return !scale && !shift && !residual && !relu; }
};

inline void check_crossbar(const Crossbar& c) {
  check(c.weight.scalar_type() == ScalarType::Float, c.op, "weight", "must be float32", "another dtype");
  if (c.step)
    check(c.step->scalar_type() == ScalarType::Float && c.step->numel() == 1, c.op, "step", "must be one float32",
          c.step->sizes());
  check(c.step || !c.codes, c.op, "step", "must be given with codes", "none");
  check(c.key.scalar_type() == ScalarType::Long && c.key.dim() == 2 && c.key.size(1) == 2 && c.key.size(0) > 0, c.op, "key",
        "must be int64 [S, 2] with S >= 1", c.key.sizes());
  check(c.key.is_contiguous(), c.op, "key", "must be contiguous", "a strided tensor");
  check(c.device.size() == 4, c.op, "device", "must hold weight_bits, device_bits, path, mapping", c.device.size());
  const int64_t m = c.device[0], k = c.device[1], path = c.device[2];
  check(m >= 1 && m <= 16 && k >= 1 && m % k == 0, c.op, "device", "needs weight_bits in 1..16, a multiple of device_bits",
        c.device);
  check(path >= 0 && path <= 2, c.op, "device", "needs path 0 (off), 1 (fast) or 2 (per device)", path);
  const int64_t entries = path == 2 ? (int64_t(2) << k) + 6 : int64_t(2) << m;
  check(c.table.scalar_type() == ScalarType::Float && c.table.is_contiguous(), c.op, "table", "must be contiguous float32",
        "another tensor");
  check(path == 0 || c.table.numel() == entries, c.op, "table", "must have 2 * 2^M entries (fast path) or 2 * 2^K + 6 (per device)",
        c.table.numel());
  check(c.device[3] == 0 || c.device[3] == 1, c.op, "device", "needs mapping 0 or 1", c.device[3]);
  check(c.stream >= 0 && c.stream <= 0xffffffffll, c.op, "stream", "must be a 32-bit unsigned number", c.stream);
  if (c.codes) {
    const ScalarType want = m <= 15 ? ScalarType::Short : ScalarType::Int;
    check(c.codes->scalar_type() == want && c.codes->numel() == c.weight.numel() && c.codes->is_contiguous(), c.op, "codes",
          "must be the contiguous result of nft_ext::quantize for this weight", c.codes->sizes());
  }
}

// Rows of dim 0 that each chip sees.
inline int64_t rows_per_chip(const char* op, const Tensor& x, int64_t chips, bool shared) {
  if (shared) return x.size(0);
  check(x.size(0) % chips == 0, op, "x", "dim 0 must be a multiple of the number of chips", x.size(0));
  return x.size(0) / chips;
}

// What chip `chip` sees of x.
inline Tensor rows_of(const Tensor& x, int64_t chip, int64_t rows, bool shared, int64_t chips) {
  if (shared || chips == 1) return x;
  Tensor view = x;
  return torch::stable::narrow(view, 0, chip * rows, rows);
}

inline std::optional<Tensor> cast_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& weight, ScalarType dtype) {
  if (!bias) return std::nullopt;
  check(bias->dim() == 1 && bias->size(0) == weight.size(0), op, "bias", "must be [out]", bias->sizes());
  return aten::cast(*bias, dtype);
}

// Runs product(x of the chip, W_p of the chip) for every chip and stacks the results chip-major along dim 0.
template <class Backend, class Product>
Tensor for_each_chip(Crossbar& c, const Tensor& x, bool shared, bool channels_last, const Product& product) {
  const ScalarType dtype = x.scalar_type();
  const int64_t chips = c.chips(), rows = rows_per_chip(c.op, x, chips, shared);
  Tensor programmed = Backend::weights(c, 1, dtype, channels_last);
  std::optional<Tensor> all;
  for (int64_t chip = 0; chip < chips; ++chip) {
    Backend::program(c, programmed, chip, 1);
    Tensor y = aten::cast(product(rows_of(x, chip, rows, shared, chips), programmed), dtype);
    if (y.dim() == 4) y = aten::in_format(y, channels_last);
    if (chips == 1) return y;
    if (!all) {
      Ints sizes = sizes_of(y);
      sizes[0] *= chips;
      all = aten::empty(sizes, dtype, y, channels_last);
    }
    Tensor slot = torch::stable::narrow(*all, 0, chip * rows, rows);
    torch::stable::copy_(slot, y);
  }
  return *all;
}

// Sum over chips of a chip-major tensor [S * B, ...] -> [B, ...].
inline Tensor sum_over_chips(const Tensor& t, int64_t chips) {
  if (chips == 1) return t;
  Ints sizes = sizes_of(t);
  sizes[0] /= chips;
  sizes.insert(sizes.begin(), chips);
  const Ints first{0};
  return torch::stable::sum(torch::stable::reshape(t, sizes), IntHeaderOnlyArrayRef(first));
}

// Which gradients are wanted: bit 0 for x, 1 for the weight, 2 for the bias.
inline std::array<bool, 3> mask_of(int64_t wanted) { return {(wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0}; }

inline void check_x(const Crossbar& c, const Tensor& x) {
  const ScalarType t = x.scalar_type();
  check(t == ScalarType::Float || t == ScalarType::BFloat16 || (x.is_cuda() && t == ScalarType::Half), c.op, "x",
        "must be float32 or bfloat16 (or float16 on CUDA)", "another dtype");
}

// What belongs to a result of these sizes: its gradient, a residual.
inline void check_like_result(const Crossbar& c, const char* argument, const Tensor& t, const Tensor& x, const Ints& sizes) {
  check(t.scalar_type() == x.scalar_type(), c.op, argument, "must have x's dtype", "another dtype");
  if (sizes_of(t) == sizes) return;
  std::ostringstream rule;
  rule << "must have the result's shape ";
  show(rule, sizes);
  check(false, c.op, argument, rule.str().c_str(), t.sizes());
}

inline void check_epilogue(const Crossbar& c, const Epilogue& e, const Tensor& x, const Ints& sizes) {
  const auto check_row = [&](const char* argument, const std::optional<Tensor>& t) {
    if (!t) return;
    check(t->scalar_type() == ScalarType::Float, c.op, argument, "must be float32", "another dtype");
    check(t->dim() == 1 && t->size(0) == c.weight.size(0), c.op, argument, "must be [out]", t->sizes());
  };
  check_row("scale", e.scale);
  check_row("shift", e.shift);
  if (e.residual) check_like_result(c, "residual", *e.residual, x, sizes);
}

// ---- linear: x [N, in] (N = B, or S * B chip-major), weight [out, in] -> [S * B, out]

inline void check_linear(const Crossbar& c, const Tensor& x) {
  check_crossbar(c);
  check_x(c, x);
  check(c.weight.dim() == 2, c.op, "weight", "must be [out, in]", c.weight.sizes());
  check(x.dim() == 2 && x.size(1) == c.weight.size(1), c.op, "x", "must be [rows, in] with the weight's in", x.sizes());
}

inline Ints linear_result(const Crossbar& c, const Tensor& x, bool shared) {
  return {c.chips() * rows_per_chip(c.op, x, c.chips(), shared), c.weight.size(0)};
}

template <class Backend>
Tensor noisy_linear(Crossbar c, const Tensor& x, const std::optional<Tensor>& bias, bool shared, const Epilogue& e = {}) {
  check_linear(c, x);
  const auto b = cast_bias(c.op, bias, c.weight, x.scalar_type());
  if (!e.empty()) check_epilogue(c, e, x, linear_result(c, x, shared));
  if (const auto y = Backend::product(c, x, b, {{1, 1}, {0, 0}, {1, 1}, 1}, shared, e)) return *y;
  const Tensor y = for_each_chip<Backend>(c, x, shared, false,
                                          [&](const Tensor& rows, const Tensor& w) { return aten::linear(rows, w, b); });
  if (!e.empty()) Backend::finish(c, y, e);
  return y;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> noisy_linear_backward(Crossbar c, const Tensor& grad, const Tensor& x, bool shared,
                                                         std::array<bool, 3> mask) {
  check_linear(c, x);
  const int64_t chips = c.chips();
  check_like_result(c, "grad", grad, x, linear_result(c, x, shared));
  Tensor grad_x = aten::empty({0}, x.scalar_type(), x), grad_w = aten::empty({0}, ScalarType::Float, x),
         grad_b = aten::empty({0}, ScalarType::Float, x);
  if (mask[0]) {
    const auto fused = Backend::input_gradient(c, grad, x, {{1, 1}, {0, 0}, {1, 1}, 1});
    grad_x = fused ? *fused : for_each_chip<Backend>(c, grad, false, false, [&](const Tensor& rows, const Tensor& w) {
      return torch::stable::matmul(rows, w);
    });
    if (shared) grad_x = sum_over_chips(grad_x, chips);
  }
  const Tensor total = shared ? sum_over_chips(grad, chips) : grad;
  if (mask[1]) grad_w = aten::cast(torch::stable::matmul(torch::stable::transpose(total, 0, 1), x), ScalarType::Float);
  if (mask[2]) {
    const Ints first{0};
    grad_b = torch::stable::sum(total, IntHeaderOnlyArrayRef(first), false, ScalarType::Float);
  }
  return {grad_x, grad_w, grad_b};
}

// ---- conv2d: x [N, C, H, W], weight [out, C / groups, kh, kw] -> [S * B, out, oh, ow]

inline void check_conv2d(const Crossbar& c, const Tensor& x, const aten::Convolution& p) {
  check_crossbar(c);
  check_x(c, x);
  check(c.weight.dim() == 4, c.op, "weight", "must be [out, C / groups, kh, kw]", c.weight.sizes());
  check(p.groups >= 1 && c.weight.size(0) % p.groups == 0, c.op, "groups", "must divide the output channels", p.groups);
  check(x.dim() == 4 && x.size(1) == c.weight.size(1) * p.groups, c.op, "x", "must be [rows, C, H, W] with the weight's C",
        x.sizes());
  check(p.stride.size() == 2 && p.stride[0] > 0 && p.stride[1] > 0, c.op, "stride", "must be two positive ints", p.stride);
  check(p.padding.size() == 2 && p.padding[0] >= 0 && p.padding[1] >= 0, c.op, "padding", "must be two ints >= 0", p.padding);
  check(p.dilation.size() == 2 && p.dilation[0] > 0 && p.dilation[1] > 0, c.op, "dilation", "must be two positive ints",
        p.dilation);
}

inline Ints conv2d_result(const Crossbar& c, const Tensor& x, const aten::Convolution& p, bool shared) {
  Ints result{c.chips() * rows_per_chip(c.op, x, c.chips(), shared), c.weight.size(0)};
  for (int i = 0; i < 2; ++i) {
    const int64_t reach = p.dilation[i] * (c.weight.size(2 + i) - 1) + 1;
    result.push_back((x.size(2 + i) + 2 * p.padding[i] - reach) / p.stride[i] + 1);
  }
  return result;
}

template <class Backend>
Tensor noisy_conv2d(Crossbar c, const Tensor& x, const std::optional<Tensor>& bias, const aten::Convolution& p,
                    bool shared, const Epilogue& e = {}) {
  check_conv2d(c, x, p);
  const auto b = cast_bias(c.op, bias, c.weight, x.scalar_type());
  if (!e.empty()) check_epilogue(c, e, x, conv2d_result(c, x, p, shared));
  if (const auto y = Backend::product(c, x, b, p, shared, e)) return *y;
  const Tensor y = for_each_chip<Backend>(c, x, shared, aten::is_channels_last(x), [&](const Tensor& rows, const Tensor& w) {
    return aten::convolution(rows, w, b, p);
  });
  if (!e.empty()) Backend::finish(c, y, e);
  return y;
}

// Every chip's gradient with respect to its x by the library, chip-major; `programmed` is memory for one chip's weights.
template <class Backend>
Tensor conv2d_input_gradient(Crossbar& c, const Tensor& grad, const Tensor& x, const aten::Convolution& p, bool shared,
                             const Tensor& programmed) {
  const int64_t chips = c.chips(), rows = rows_per_chip(c.op, x, chips, shared);
  const bool channels_last = aten::is_channels_last(x);
  std::optional<Tensor> all;
  for (int64_t chip = 0; chip < chips; ++chip) {
    Backend::program(c, programmed, chip, 1);
    const Tensor part = aten::cast(std::get<0>(Backend::convolution_backward(rows_of(grad, chip, rows, false, chips),
                                                                            rows_of(x, chip, rows, shared, chips), programmed, p,
                                                                            {true, false, false})),
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
std::tuple<Tensor, Tensor, Tensor> noisy_conv2d_backward(Crossbar c, const Tensor& grad, const Tensor& x,
                                                         const aten::Convolution& p, bool shared, std::array<bool, 3> mask) {
  check_conv2d(c, x, p);
  const int64_t chips = c.chips();
  check_like_result(c, "grad", grad, x, conv2d_result(c, x, p, shared));
  const bool channels_last = aten::is_channels_last(x);
  Tensor grad_x = aten::empty({0}, x.scalar_type(), x), grad_w = aten::empty({0}, ScalarType::Float, x),
         grad_b = aten::empty({0}, ScalarType::Float, x);
  const Tensor programmed = Backend::weights(c, 1, x.scalar_type(), channels_last);
  if (mask[0]) {
    const auto fused = Backend::input_gradient(c, grad, x, p);
    grad_x = fused ? *fused : conv2d_input_gradient<Backend>(c, grad, x, p, shared, programmed);
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

}  // namespace nft
