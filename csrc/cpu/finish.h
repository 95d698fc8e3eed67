// The epilogue of a product on the CPU: its tensors as pointers for the kernels, and the pass over a result of the library's.
#pragma once

#include "../product.h"
#include "deal.h"
#include "multiply.h"

namespace nft {

// Pointers for results in one of the two dense formats. Tensors that had to be brought into it are kept in the arguments.
inline Finish finish_of(std::optional<Tensor>& bias, Epilogue& e, bool channels_last) {
  const auto floats = [](std::optional<Tensor>& t) -> const float* {
    if (!t) return nullptr;
    t = aten::contiguous(*t);
    return static_cast<const float*>(t->data_ptr());
  };
  Finish f = {floats(bias), floats(e.scale), floats(e.shift), nullptr, e.relu};
  if (e.residual) {
    e.residual = e.residual->dim() == 4 ? aten::in_format(*e.residual, channels_last) : aten::contiguous(*e.residual);
    f.residual = e.residual->data_ptr();
  }
  return f;
}

// In place on y [N, out] or [N, out, height, width], dense, with its bias already in it.
inline void finish_in_place(const Tensor& y, Epilogue e) {
  constexpr int64_t kPiece = 1 << 14, kAlone = 1 << 15;  // results; so few are not worth waking the other threads
  const bool channels_last = aten::is_channels_last(y);
  std::optional<Tensor> no_bias;
  const Finish f = finish_of(no_bias, e, channels_last);
  const OutType type = y.scalar_type() == ScalarType::Float ? OutType::kFloat32 : OutType::kBFloat16;
  const int64_t rows = y.size(1), inner = channels_last || y.dim() == 2 ? 1 : y.size(2) * y.size(3);
  const Multiply& kernel = multiply_of(kernels());
  void* data = y.data_ptr();
  const auto part = [&](int64_t begin, int64_t end) { kernel.finish(f, type, rows, inner, begin, end, data); };
  deal({Phase::tiles(y.numel(), kPiece, part)}, y.numel() <= kAlone);
}

}  // namespace nft
