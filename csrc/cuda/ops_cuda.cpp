// The operators on CUDA: sampler and fused product on the current stream of the weight's device. No value is read back,
// no call waits.
#include <stdlib.h>

#include "../keys.h"
#include "one_pass.h"
#include "operands.h"
#include "together.h"

namespace nft {
namespace {

// Read when the library is loaded, like Python's copy (nft_ext/ops/build_info.py). The first product refuses an unknown name.
const std::string one_pass_name = [] {
  const char* name = getenv("NFT_EXT_ONE_PASS");
  return std::string(name ? name : "");
}();

bool takes_one_pass(cuda::Direction direction, cuda::OutType type, int64_t rows, int64_t columns) {
  static const cuda::OnePass rule = cuda::one_pass_named(one_pass_name);
  return cuda::takes_one_pass(rule, direction, type, rows, columns);
}

// The same for several weights, in one pass over all of them.
Tensor weight_step_many(std::vector<Tensor> weights, Ints weight_bits) {
  const char* op = "weight_step_many";
  check(!weights.empty() && weight_bits.size() == weights.size(), op, "weight_bits",
        "must be one a weight, of one weight at least", weight_bits.size());
  std::vector<Tensor> dense;
  std::vector<cuda::Program> programs(weights.size());
  const OnDevice here(weights[0]);
  for (size_t l = 0; l < weights.size(); ++l) {
    check(weights[l].scalar_type() == ScalarType::Float, op, "weights", "must be float32", "another dtype");
    check(weight_bits[l] >= 1 && weight_bits[l] <= 16, op, "weight_bits", "must be in 1..16", weight_bits[l]);
    check_beside(op, "weights", weights[l], weights[0]);
    dense.push_back(aten::contiguous(weights[l]));
    programs[l].weight = floats(dense[l]);
    programs[l].n = dense[l].numel();
    programs[l].weight_bits = (int)weight_bits[l];
  }
  Tensor steps = aten::empty({(int64_t)weights.size()}, ScalarType::Float, weights[0]);
  STD_CUDA_CHECK(cuda::weight_step_many(programs.data(), (int)programs.size(), static_cast<float*>(steps.data_ptr()),
                                        here.stream()));
  return steps;
}

Tensor quantize(Tensor weight, Tensor step, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "quantize", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "quantize", "weight_bits", "must be in 1..16", weight_bits);
  check(step.scalar_type() == ScalarType::Float && step.numel() == 1, "quantize", "step", "must be one float32", step.sizes());
  check(weight.is_cuda(), "quantize", "weight", "must be on CUDA like the step", "another device");
  check_beside("quantize", "step", step, weight);
  const OnDevice here(weight);
  const Tensor dense = aten::contiguous(weight);
  Tensor codes = aten::empty(sizes_of(weight), weight_bits <= 15 ? ScalarType::Short : ScalarType::Int, weight);
  STD_CUDA_CHECK(cuda::quantize(floats(dense), dense.numel(), floats(step), (int)weight_bits, codes.data_ptr(), here.stream()));
  return codes;
}

struct Cuda {
  // torch's caching allocator reuses the memory of the last call, in the order of the stream.
  static Tensor memory(const Ints& sizes, ScalarType dtype, const Tensor& like) { return aten::empty(sizes, dtype, like); }

  static bool can_be_channels_last(const Crossbar& c) { return nft::can_be_channels_last(c); }

  // For weights [chips * out, ...]; channels last only where they can be programmed so.
  static Tensor weights(const Crossbar& c, int64_t chips, ScalarType dtype, bool channels_last) {
    Ints sizes = sizes_of(c.weight);
    sizes[0] *= chips;
    return aten::empty(sizes, dtype, c.weight, channels_last && can_be_channels_last(c));
  }

  // In the order in which `out` lies in memory.
  static cuda::Program program_into(Crossbar& c, Tensor& dense, const Tensor& out) {
    const bool turned = aten::is_channels_last(out);
    if (turned && !c.codes) {  // the kernel for this order reads codes
      if (!c.step) c.step = weight_step(c.weight, c.device[0]);
      c.codes = quantize(c.weight, *c.step, c.device[0]);
    }
    if (turned && (uintptr_t)c.codes->data_ptr() % 16 != 0) c.codes = torch::stable::clone(*c.codes);
    cuda::Program p = program_of(c, dense);
    if (turned) {
      p.channels = (int)c.weight.size(1);
      p.taps = (int)(c.weight.size(2) * c.weight.size(3));
    }
    p.out_type = out_type(out);
    p.out = out.data_ptr();
    return p;
  }

  static void program(Crossbar& c, const Tensor& out, int64_t first_chip, int64_t chips) {
    Tensor dense = c.weight;
    cuda::Program p = program_into(c, dense, out);
    const OnDevice here(c.weight);
    p.keys += 2 * first_chip;
    p.chips = chips;
    STD_CUDA_CHECK(cuda::program(p, here.stream()));
  }

  static void program_many(std::vector<Crossbar>& layers, const std::vector<Tensor>& scales, const std::vector<Tensor>& outs) {
    if (layers.empty()) return;
    if (!layers[0].step) {
      std::vector<Tensor> weights;
      Ints bits;
      for (const Crossbar& c : layers) {
        weights.push_back(c.weight);
        bits.push_back(c.device[0]);
      }
      Tensor steps = weight_step_many(weights, bits);
      for (size_t l = 0; l < layers.size(); ++l) layers[l].step = torch::stable::narrow(steps, 0, (int64_t)l, 1);
    }
    std::vector<Tensor> dense(layers.size());
    std::vector<cuda::Program> programs;
    for (size_t l = 0; l < layers.size(); ++l) {
      check_beside(layers[l].op, "weights", layers[l].weight, layers[0].weight);
      if (!scales.empty()) check_beside(layers[l].op, "scales", scales[l], layers[0].weight);
      programs.push_back(program_into(layers[l], dense[l], outs[l]));
      if (!scales.empty()) programs[l].scale = floats(scales[l]);
    }
    const OnDevice here(layers[0].weight);
    STD_CUDA_CHECK(cuda::program_many(programs.data(), (int)programs.size(), here.stream()));
  }

  static std::optional<Tensor> product(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias, const aten::Convolution& p,
                                       bool shared, const Epilogue& epilogue) {
    check_product(c, x, epilogue);
    auto layer = product_of(c, x, p, shared);
    const bool one_pass = layer && cuda::can_fuse(layer->f) &&
                          takes_one_pass(cuda::Direction::kForward, out_type(x), c.weight.size(0) / p.groups, layer->columns);
    if (!one_pass)
      return layer && fit_together(c, x) ? std::optional<Tensor>(product_together(c, x, bias, p, shared, epilogue)) : std::nullopt;
    cuda::Fused& f = layer->f;
    f.program = program_of(c, layer->weight);
    const OnDevice here(c.weight);
    const Tensor y = aten::empty(layer->sizes, x.scalar_type(), x, aten::is_channels_last(x));
    follow(*layer, c, bias, epilogue);
    f.x = x.data_ptr();
    f.y = y.data_ptr();
    f.x_type = f.y_type = out_type(x);
    f.x_strides = strides_of(x, f.images, shared);
    f.y_strides = strides_of(y, f.images, false);
    cuda::Plan plan = {};
    STD_CUDA_CHECK(cuda::fused_plan(f, &plan));
    const auto sums = memory_for(plan, c.weight);
    STD_CUDA_CHECK(cuda::fused(f, plan, floats_of(sums), here.stream()));
    return y;
  }

  // The library's, all chips at once.
  static Tensor product_together(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias, const aten::Convolution& p, bool shared,
                                 const Epilogue& epilogue) {
    const Tensor all = weights(c, c.chips(), x.scalar_type(), aten::is_channels_last(x));
    program(c, all, 0, c.chips());
    const Tensor y = x.dim() == 4 ? conv2d_together(c, x, all, p, shared) : linear_together(c, x, all, shared);
    if (bias || !epilogue.empty()) finish(c, y, epilogue, bias);
    return y;
  }

  // Every chip's gradient with respect to its x, chip-major, in x's memory format.
  static std::optional<Tensor> input_gradient(Crossbar& c, const Tensor& grad, const Tensor& x, const aten::Convolution& p) {
    check_beside(c.op, "x", x, c.weight);
    check_beside(c.op, "grad", grad, c.weight);
    const bool image = x.dim() == 4;
    bool fits = x.size(1) < kMostSize && grad.size(1) < kMostSize;
    for (int i = 0; i < 2; ++i) fits = fits && p.stride[i] < kMostSize && p.padding[i] < kMostSize && p.dilation[i] < kMostSize;
    cuda::Fused f = {};
    f.images = grad.size(0) / c.chips();
    f.channels = (int)grad.size(1);
    f.rows = (int)x.size(1);
    f.groups = (int)p.groups;
    int64_t columns = f.images;
    Ints sizes{grad.size(0), x.size(1)};
    for (int i = 0; i < 2; ++i) {
      const int64_t seen = image ? grad.size(2 + i) : 1, size = image ? x.size(2 + i) : 1;
      fits = fits && seen < kMostSize && size < kMostSize;
      (i ? f.width : f.height) = (int)seen;
      f.kernel[i] = image ? (int)c.weight.size(2 + i) : 1;
      f.stride[i] = (int)p.stride[i];
      f.padding[i] = (int)p.padding[i];
      f.dilation[i] = (int)p.dilation[i];
      f.out[i] = (int)size;
      columns *= size;
      if (image) sizes.push_back(size);
    }
    if (!fits || !cuda::can_fuse_gradient(f)) return std::nullopt;
    if (!takes_one_pass(cuda::Direction::kInputGradient, out_type(x), x.size(1) / p.groups, columns)) return std::nullopt;

    Tensor dense = c.weight;
    f.program = program_of(c, dense);
    const OnDevice here(c.weight);
    const Tensor y = aten::empty(sizes, x.scalar_type(), x, aten::is_channels_last(x));
    f.x = grad.data_ptr();
    f.y = y.data_ptr();
    f.x_type = f.y_type = out_type(x);
    f.x_strides = strides_of(grad, f.images, false);
    f.y_strides = strides_of(y, f.images, false);
    cuda::Plan plan = {};
    STD_CUDA_CHECK(cuda::fused_gradient_plan(f, &plan));
    const auto sums = memory_for(plan, c.weight);
    STD_CUDA_CHECK(cuda::fused_gradient(f, plan, floats_of(sums), here.stream()));
    return y;
  }

  // cuDNN's, but never by atomics (nft_ext/ops/deterministic.py).
  static std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                                 const aten::Convolution& p, std::array<bool, 3> mask) {
    return aten::convolution_backward(grad, x, weight, p, mask, "nft_ext::convolution_backward");
  }

  // One pass over a result of the library's, which is dense; bias: where it is not in it yet.
  static void finish(const Crossbar& c, const Tensor& y, const Epilogue& e, const std::optional<Tensor>& bias = std::nullopt) {
    const bool channels_last = aten::is_channels_last(y);
    std::optional<Tensor> scale, shift, residual, offset;
    cuda::Results r = {y.data_ptr(), out_type(y), y.numel(), y.size(1),
                       channels_last || y.dim() == 2 ? 1 : y.size(2) * y.size(3)};
    cuda::Epilogue f = {};
    const OnDevice here(c.weight);
    if (bias) {
      check_beside(c.op, "bias", *bias, c.weight);
      f.bias = dense_floats(aten::cast(*bias, ScalarType::Float), offset);
    }
    f.scale = dense_floats(e.scale, scale);
    f.shift = dense_floats(e.shift, shift);
    if (e.residual) {
      residual = y.dim() == 4 ? aten::in_format(*e.residual, channels_last) : aten::contiguous(*e.residual);
      f.residual = residual->data_ptr();
    }
    f.relu = e.relu;
    STD_CUDA_CHECK(cuda::finish(r, f, here.stream()));
  }
};

using CudaOperators = Operators<Cuda>;

}  // namespace
}  // namespace nft

STABLE_TORCH_LIBRARY_IMPL(nft_ext, CUDA, m) {
  m.impl("draw_key", TORCH_BOX(&nft::draw_key));
  m.impl("weight_step", TORCH_BOX(&nft::weight_step));
  m.impl("weight_step_many", TORCH_BOX(&nft::weight_step_many));
  m.impl("finish_", TORCH_BOX(&nft::CudaOperators::finish));
  m.impl("program_many", TORCH_BOX(&nft::CudaOperators::program_many));
  m.impl("quantize", TORCH_BOX(&nft::quantize));
  m.impl("program", TORCH_BOX(&nft::CudaOperators::program));
  m.impl("noisy_linear", TORCH_BOX(&nft::CudaOperators::linear));
  m.impl("noisy_linear_fused", TORCH_BOX(&nft::CudaOperators::linear_fused));
  m.impl("noisy_linear_backward", TORCH_BOX(&nft::CudaOperators::linear_backward));
  m.impl("noisy_conv2d", TORCH_BOX(&nft::CudaOperators::conv2d));
  m.impl("noisy_conv2d_fused", TORCH_BOX(&nft::CudaOperators::conv2d_fused));
  m.impl("noisy_conv2d_backward", TORCH_BOX(&nft::CudaOperators::conv2d_backward));
}
