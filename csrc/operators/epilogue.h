// The epilogue of a product: relu((W_p x + bias) * scale + shift + residual), for inference.
//
// Each operation is rounded to float32 by itself. A one-pass product applies them to its float32 sums and rounds to the
// result's type once. torch's results have been rounded to that type before.
#pragma once

#include "operators/crossbar.h"

namespace nft {

struct Epilogue {
  std::optional<Tensor> scale, shift;  // [out] float32
  std::optional<Tensor> residual;      // the result's shape and dtype
  bool relu = false;

  bool empty() const { return !scale && !shift && !residual && !relu; }
};

// For a product with a result of `sizes`.
inline void check_epilogue(const Crossbar& c, const Epilogue& e, const Tensor& x, const Ints& sizes) {
  const auto check_row = [&](const char* argument, const std::optional<Tensor>& t) {
    if (!t) return;
    check_beside(c.op, argument, *t, c.weight);
    check(t->scalar_type() == ScalarType::Float, c.op, argument, "must be float32", "another dtype");
    check(t->dim() == 1 && t->size(0) == c.weight.size(0), c.op, argument, "must be [out]", t->sizes());
  };
  check_row("scale", e.scale);
  check_row("shift", e.shift);
  if (e.residual) check_like_result(c, "residual", *e.residual, x, sizes);
}

namespace operators {

// In place on y [N, out] or [N, out, height, width], dense in either memory format.
template <class Backend>
void epilogue_(Tensor y, std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> residual,
               bool relu) {
  const char* op = "epilogue_";
  check(y.dim() == 2 || y.dim() == 4, op, "y", "must be [N, out] or [N, out, height, width]", y.sizes());
  check(y.is_contiguous() || aten::is_channels_last(y), op, "y", "must be dense, contiguous or channels last",
        "another layout");
  check_float_type(op, "y", y.scalar_type(), y.is_cuda());
  check_beside(op, "scale", scale, y);
  check_beside(op, "shift", shift, y);
  check_beside(op, "residual", residual, y);
  for (const auto& row : {scale, shift})
    if (row)
      check(row->scalar_type() == ScalarType::Float && row->dim() == 1 && row->size(0) == y.size(1), op,
            "scale and shift", "must be float32 [out]", row->sizes());
  if (residual)
    check(residual->scalar_type() == y.scalar_type() && sizes_of(*residual) == sizes_of(y), op, "residual",
          "must have y's shape and dtype", residual->sizes());
  Backend::epilogue(op, y, {scale, shift, residual, relu});
}

}  // namespace operators
}  // namespace nft
