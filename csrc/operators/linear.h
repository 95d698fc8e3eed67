// The noisy linear layer: x [N, in] (N = B, or S * B chip-major), weight [out, in] -> [S * B, out].
//
// Straight-through gradients: dL/dW = dL/dW_p, and dL/dx uses W_p. The weight's gradient does not depend on the
// weight, so one product over all chips' rows gives it. Only dL/dx needs each chip's weights.
#pragma once

#include "operators/epilogue.h"
#include "operators/per_chip.h"

namespace nft {

inline void check_linear(const Crossbar& c, const Tensor& x) {
  check_crossbar(c);
  check_x(c, x);
  check(c.weight.dim() == 2, c.op, "weight", "must be [out, in]", c.weight.sizes());
  check(x.dim() == 2 && x.size(1) == c.weight.size(1), c.op, "x", "must be [rows, in] with the weight's in", x.sizes());
}

inline Ints linear_result(const Crossbar& c, const Tensor& x, bool shared) {
  const Ints result{for_all_chips(c.op, c.chips(), rows_per_chip(c.op, x, c.chips(), shared)), c.weight.size(0)};
  elements_of(result);  // refuses what overflows
  return result;
}

template <class Backend>
Tensor linear_product(Crossbar c, const Tensor& x, const std::optional<Tensor>& bias, bool shared,
                      const Epilogue& e = {}) {
  check_linear(c, x);
  check_epilogue(c, e, x, linear_result(c, x, shared));
  c.weight = Backend::readable(c.weight);
  const auto b = cast_bias(c.op, bias, c.weight, x.scalar_type());
  Backend::check_values(c);
  if (const auto y = Backend::product(c, x, b, aten::single_pixel(), shared, e)) return *y;
  const Tensor y = for_each_chip<Backend>(
      c, x, shared, false, [&](const Tensor& rows, const Tensor& w) { return aten::linear(rows, w, b); });
  if (!e.empty()) Backend::epilogue(c.op, y, e);
  return y;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> linear_gradients(Crossbar c, const Tensor& grad, const Tensor& x, bool shared,
                                                    std::array<bool, 3> mask) {
  check_linear(c, x);
  c.weight = Backend::readable(c.weight);
  const int64_t chips = c.chips();
  check_like_result(c, "grad", grad, x, linear_result(c, x, shared));
  Backend::check_values(c);
  Tensor grad_x = aten::empty({0}, x.scalar_type(), x), grad_w = aten::empty({0}, ScalarType::Float, x),
         grad_b = aten::empty({0}, ScalarType::Float, x);
  if (mask[0]) {
    const auto one_pass = Backend::input_gradient(c, grad, x, aten::single_pixel());
    grad_x =
        one_pass ? *one_pass : for_each_chip<Backend>(c, grad, false, false, [&](const Tensor& rows, const Tensor& w) {
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

// ---- as the schemas spell them

namespace operators {

template <class Backend>
Tensor noisy_linear(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> codes,
                    std::optional<Tensor> step, Tensor table, Tensor key, int64_t stream, Ints spec, bool shared) {
  return linear_product<Backend>({"noisy_linear", weight, codes, step, table, key, stream, spec}, x, bias, shared);
}

template <class Backend>
Tensor noisy_linear_fused(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> codes,
                          std::optional<Tensor> step, Tensor table, Tensor key, int64_t stream, Ints spec, bool shared,
                          std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> residual,
                          bool relu) {
  return linear_product<Backend>({"noisy_linear_fused", weight, codes, step, table, key, stream, spec}, x, bias, shared,
                                 {scale, shift, residual, relu});
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> noisy_linear_backward(Tensor grad, Tensor x, Tensor weight,
                                                         std::optional<Tensor> codes, std::optional<Tensor> step,
                                                         Tensor table, Tensor key, int64_t stream, Ints spec,
                                                         bool shared, int64_t wanted) {
  return linear_gradients<Backend>({"noisy_linear_backward", weight, codes, step, table, key, stream, spec}, grad, x,
                                   shared, mask_of("noisy_linear_backward", wanted));
}

}  // namespace operators
}  // namespace nft
