// The epilogue on the CPU: its tensors as pointers for the
// kernels, and the pass over a result that torch has multiplied.
#pragma once

#include "operators/epilogue.h"
#include "cpu/torch/threads.h"
#include "cpu/product/multiply.h"

namespace nft {

// Pointers for results in one of the two dense formats. The arguments keep the copies that this needs.
inline EpiloguePointers epilogue_pointers(std::optional<Tensor>& bias, Epilogue& e, bool channels_last) {
  const auto row = [](std::optional<Tensor>& t) -> const float* {
    if (!t) return nullptr;
    t = aten::contiguous(*t);
    return floats(*t);
  };
  EpiloguePointers f = {row(bias), row(e.scale), row(e.shift), nullptr, e.relu};
  if (e.residual) {
    e.residual = e.residual->dim() == 4 ? aten::in_format(*e.residual, channels_last) : aten::contiguous(*e.residual);
    f.residual = e.residual->data_ptr();
  }
  return f;
}

// In place on y [N, out] or [N, out, height, width], dense, to which the bias has been added.
inline void epilogue_in_place(const Tensor& y, Epilogue e) {
  constexpr int64_t kPiece = 1 << 14;      // results
  constexpr int64_t kOneThread = 1 << 15;  // so few are not worth waking the other threads
  const bool channels_last = aten::is_channels_last(y);
  std::optional<Tensor> no_bias;
  const EpiloguePointers f = epilogue_pointers(no_bias, e, channels_last);
  const OutType type = y.scalar_type() == ScalarType::Float ? OutType::kFloat32 : OutType::kBFloat16;
  const int64_t rows = y.size(1), inner = channels_last || y.dim() == 2 ? 1 : y.size(2) * y.size(3);
  const Multiply& kernel = multiply_of(kernels());
  void* data = y.data_ptr();
  const auto part = [&](int64_t begin, int64_t end) { kernel.epilogue(f, type, rows, inner, begin, end, data); };
  run_phases({Phase::tiles(y.numel(), kPiece, part)}, y.numel() <= kOneThread);
}

}  // namespace nft
