// The ATen calls that the operators make, through the dispatcher of torch's stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "operators/check.h"

namespace nft {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

inline Ints sizes_of(const Tensor& t) {
  auto sizes = t.sizes();
  return Ints(sizes.data(), sizes.data() + sizes.size());
}

namespace aten {

template <size_t N>
inline void call(const char* name, const char* overload, std::array<StableIValue, N>& stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
}

using torch::stable::detail::from;
using torch::stable::detail::to;

// y [N, out] = x [N, in] W [out, in]^T + bias [out]
inline Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  call("aten::linear", "", stack);
  return to<Tensor>(stack[0]);
}

// [S, N, K] x [S, K, M] -> [S, N, M]; a matrix that all S share may have a stride of zero.
inline Tensor bmm(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{from(a), from(b)};
  call("aten::bmm", "", stack);
  return to<Tensor>(stack[0]);
}

inline Tensor expand(const Tensor& t, const Ints& sizes) {
  std::array<StableIValue, 3> stack{from(t), from(sizes), from(false)};
  call("aten::expand", "", stack);
  return to<Tensor>(stack[0]);
}

struct Convolution {
  Ints stride, padding, dilation;  // [2] each
  int64_t groups;
};

// A linear layer is a convolution of images with a single pixel.
inline Convolution single_pixel() { return {{1, 1}, {0, 0}, {1, 1}, 1}; }

// x [B, C, H, W], weight [out, C / groups, kh, kw] -> [B, out, oh, ow]
inline Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          const Convolution& c) {
  const Ints no_padding(2, 0);
  std::array<StableIValue, 9> stack{from(x),          from(weight), from(bias),       from(c.stride), from(c.padding),
                                    from(c.dilation), from(false),  from(no_padding), from(c.groups)};
  call("aten::convolution", "", stack);
  return to<Tensor>(stack[0]);
}

// (grad_x, grad_weight, grad_bias); the ones not in `mask` are
// undefined. `op` may name another operator with the same arguments.
inline std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x,
                                                               const Tensor& weight, const Convolution& c,
                                                               std::array<bool, 3> mask,
                                                               const char* op = "aten::convolution_backward") {
  const Ints no_padding(2, 0);
  std::optional<Ints> bias_sizes;
  if (mask[2]) bias_sizes = Ints{weight.size(0)};
  const torch::headeronly::HeaderOnlyArrayRef<bool> wanted(mask.data(), mask.size());
  std::array<StableIValue, 11> stack{from(grad),       from(x),         from(weight),     from(bias_sizes),
                                     from(c.stride),   from(c.padding), from(c.dilation), from(false),
                                     from(no_padding), from(c.groups),  from(wanted)};
  call(op, "", stack);
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
}

// Dense and uninitialised, on the torch device of `like`. Not through
// the dispatcher, which takes some 8,000 instructions per tensor.
inline Tensor empty(const Ints& sizes, ScalarType dtype, const Tensor& like, bool channels_last = false) {
  elements_of(sizes);  // refuses what overflows
  const size_t dims = sizes.size();
  Ints strides(dims);
  int64_t next = 1;
  for (size_t i = dims; i-- > 0;) {
    constexpr size_t kChannelsLast[] = {0, 2, 3, 1};
    const size_t dim = channels_last ? kChannelsLast[i] : i;
    strides[dim] = next;
    next *= std::max<int64_t>(sizes[dim], 1);
  }
  int32_t kind, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &kind));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided((int64_t)dims, sizes.data(), strides.data(), to<int32_t>(from(dtype)),
                                                  kind, index, &made));
  return Tensor(made);
}

// Fills `t` with integers in [0, end) from torch's generator of its torch device.
inline void random_(const Tensor& t, int64_t end) {
  std::array<StableIValue, 4> stack{from(t), from(int64_t(0)), from(std::optional<int64_t>(end)), from(std::nullopt)};
  call("aten::random_", "from", stack);
  to<Tensor>(stack[0]);  // `t` again: takes back the reference that the call has added
}

inline Tensor cast(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// `t` itself if it is dense and row-major: a call of the dispatcher costs as much as a small layer.
inline Tensor contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// Whether `t` is dense with channels last, by torch's rule. With one channel or one
// pixel both formats are the same memory; then the strides of the dimensions of size
// 1 decide, as in torch's own convolutions. The fake kernels use the same rule.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.stride(1) == 0) return false;
  int64_t expected = 1, least = 0;
  for (int dim : {1, 3, 2, 0}) {
    const int64_t size = t.size(dim), stride = t.stride(dim);
    if (size == 0 || (size != 1 && stride != expected) || stride < least || (dim == 0 && least == t.stride(1)))
      return false;
    expected *= size;
    least = stride * size;
  }
  return true;
}

// `t` with dense strides of that format; a copy only if they differ.
inline Tensor in_format(const Tensor& t, bool channels_last) {
  int64_t expected = 1;
  bool same = true;
  const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  for (int k = 0; k < 4; ++k) {
    const int dim = order[channels_last][k];
    same = same && t.stride(dim) == expected;
    expected *= t.size(dim);
  }
  if (same) return t;
  Tensor dense = empty(sizes_of(t), t.scalar_type(), t, channels_last);
  torch::stable::copy_(dense, t);
  return dense;
}

}  // namespace aten
}  // namespace nft
