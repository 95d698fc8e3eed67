// Noisy linear and conv2d of 8-bit numbers (core/int8.h), for inference: what they check. Backend::int8_product does the rest,
// for every shape.
#pragma once

#include "core/int8.h"
#include "product.h"

namespace nft {

// 32 bits hold the sums of 8-bit products, whatever the numbers (kMostInt8Inner of core/int8.h).
inline void check_int8(const Crossbar& c) {
  int64_t inner = 1;
  for (int i = 1; i < c.weight.dim(); ++i) inner *= c.weight.size(i);
  check(inner <= generic::kMostInt8Inner, c.op, "weight", "must have at most 133144 inputs an output in 8 bits", inner);
}

template <class Backend>
Tensor noisy_linear_int8(Crossbar c, const Tensor& x, const std::optional<Tensor>& bias, bool shared, const Epilogue& e) {
  check_linear(c, x);
  check_int8(c);
  const auto b = cast_bias(c.op, bias, c.weight, ScalarType::Float);
  check_epilogue(c, e, x, linear_result(c, x, shared));
  return Backend::int8_product(c, x, b, {{1, 1}, {0, 0}, {1, 1}, 1}, shared, e);
}

template <class Backend>
Tensor noisy_conv2d_int8(Crossbar c, const Tensor& x, const std::optional<Tensor>& bias, const aten::Convolution& p, bool shared,
                         const Epilogue& e) {
  check_conv2d(c, x, p);
  check_int8(c);
  const Ints sizes = conv2d_result(c, x, p, shared);
  for (int i = 0; i < 2; ++i) {
    const int64_t room = x.size(2 + i) + 2 * p.padding[i], reach = p.dilation[i] * (c.weight.size(2 + i) - 1) + 1;
    check(room >= reach && c.weight.size(2 + i) > 0, c.op, "x", "must, padded, be at least as large as the kernel", x.sizes());
  }
  const auto b = cast_bias(c.op, bias, c.weight, ScalarType::Float);
  check_epilogue(c, e, x, sizes);
  return Backend::int8_product(c, x, b, p, shared, e);
}

}  // namespace nft
