// The operators on CUDA: the sampler and the one-pass products on the current stream of the weight's torch device.
// Nothing here reads a value back or waits.
#include <stdlib.h>

#include "cuda/torch/chip_batch.h"
#include "cuda/torch/one_pass_switch.h"
#include "cuda/torch/operands.h"
#include "operators/draw_key.h"
#include "operators/failure.h"
#include "operators/linear.h"
#include "operators/program.h"

namespace nft {
namespace {

// Read when the library is loaded, as Python reads its copy. The first product refuses an unknown name.
const std::string one_pass_name = [] {
  const char* name = getenv("NFT_EXT_ONE_PASS");
  return std::string(name ? name : "");
}();

bool takes_one_pass(const Crossbar& c, cuda::Direction direction, const LayerProduct& layer) {
  static const cuda::OnePassRule rule = cuda::one_pass_named(one_pass_name);
  return cuda::takes_one_pass(rule, direction, layer.f.x_type, generic::one_step(scaling_of(c)),
                              layer.f.rows / layer.f.groups, layer.columns);
}

// The steps of several weights, in one pass over all of them.
Tensor weight_step_many(std::vector<Tensor> weights, Ints weight_bits) {
  const char* op = "weight_step_many";
  check(!weights.empty() && weight_bits.size() == weights.size(), op, "weight_bits",
        "must hold one entry per weight, for at least one weight", weight_bits.size());
  std::vector<Tensor> dense;
  std::vector<cuda::Program> programs(weights.size());
  const DeviceGuard here(weights[0]);
  for (size_t l = 0; l < weights.size(); ++l) {
    check_quantizer(op, weights[l], weight_bits[l]);
    check_beside(op, "weights", weights[l], weights[0]);
    dense.push_back(aten::contiguous(aten::cast(weights[l], ScalarType::Float)));
    programs[l].weight = floats(dense[l]);
    programs[l].n = dense[l].numel();
    programs[l].weight_bits = (int)weight_bits[l];
  }
  Tensor steps = aten::empty({(int64_t)weights.size()}, ScalarType::Float, weights[0]);
  STD_CUDA_CHECK(cuda::weight_step_many(programs.data(), (int)programs.size(), static_cast<float*>(steps.data_ptr()),
                                        here.stream()));
  return steps;
}

Tensor quantize(Tensor weight, Tensor step, int64_t weight_bits, Ints scaling) {
  check_quantizer("quantize", weight, weight_bits);
  const Scaling s = scaling_of("quantize", weight, scaling);
  check_step("quantize", step, s);
  check(weight.is_cuda(), "quantize", "weight", "must be on CUDA like the step", "another device");
  check_beside("quantize", "step", step, weight);
  const DeviceGuard here(weight);
  const Tensor dense = aten::contiguous(aten::cast(weight, ScalarType::Float));
  Tensor codes = aten::empty(sizes_of(weight), code_type(weight_bits), weight);
  const int64_t n = dense.numel();
  if (generic::one_step(s))
    STD_CUDA_CHECK(cuda::quantize(floats(dense), n, floats(step), (int)weight_bits, codes.data_ptr(), here.stream()));
  else
    STD_CUDA_CHECK(
        cuda::quantize_runs(floats(dense), n, s, floats(step), (int)weight_bits, codes.data_ptr(), here.stream()));
  return codes;
}

// The functions that operators/per_chip.h asks for.
struct Cuda {
  // 16-bit weights are converted in every call.
  static Tensor readable(const Tensor& weight) { return aten::cast(weight, ScalarType::Float); }

  // No call waits for the GPU, so values out of range make every result NaN, as weights that are not finite do.
  static void check_values(Crossbar& c) {
    if (!c.codes) return;
    const DeviceGuard here(c.weight);
    const Scaling s = scaling_of(c);
    const bool one = generic::one_step(s);
    const Tensor step = aten::empty(one ? Ints{} : sizes_of(*c.step), ScalarType::Float, c.weight);
    float* const checked = static_cast<float*>(step.data_ptr());
    const void* const codes = c.codes->data_ptr();
    const int64_t n = c.codes->numel();
    if (one)
      STD_CUDA_CHECK(cuda::check_codes(codes, n, (int)c.spec[0], floats(*c.step), checked, here.stream()));
    else
      STD_CUDA_CHECK(cuda::check_codes_of_runs(codes, n, s, (int)c.spec[0], floats(*c.step), checked, here.stream()));
    c.step = step;
  }

  // torch's caching allocator gives the memory of the last call again, in the order of the stream.
  static Tensor memory(const Ints& sizes, ScalarType dtype, const Tensor& like) {
    return aten::empty(sizes, dtype, like);
  }

  static bool can_be_channels_last(const Crossbar& c) { return nft::can_be_channels_last(c); }

  // For weights [chips * out, ...]; channels last only if they can be programmed so.
  static Tensor weights(const Crossbar& c, int64_t chips, ScalarType dtype, bool channels_last) {
    Ints sizes = sizes_of(c.weight);
    sizes[0] = for_all_chips(c.op, chips, sizes[0]);
    return aten::empty(sizes, dtype, c.weight, channels_last && can_be_channels_last(c));
  }

  // In the order in which `out` lies in memory.
  static cuda::Program program_into(Crossbar& c, Tensor& dense, const Tensor& out) {
    const bool channels_last = aten::is_channels_last(out);
    if (channels_last && !c.codes) {  // the kernel for this order reads codes
      find_step(c);
      c.codes = quantize(c.weight, *c.step, c.spec[0], {});
    }
    if (channels_last && (uintptr_t)c.codes->data_ptr() % 16 != 0) c.codes = torch::stable::clone(*c.codes);
    cuda::Program p = program_of(c, dense);
    if (channels_last) {
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
    const DeviceGuard here(c.weight);
    p.keys += 2 * first_chip;
    p.chips = chips;
    const Scaling s = scaling_of(c);
    STD_CUDA_CHECK(generic::one_step(s) ? cuda::program(p, here.stream()) : cuda::program_runs(p, s, here.stream()));
  }

  // Finds the steps of all layers with one step at once.
  static void find_single_steps(std::vector<Crossbar>& layers) {
    std::vector<Crossbar*> single;
    std::vector<Tensor> weights;
    Ints bits;
    for (Crossbar& c : layers) {
      if (c.step || !generic::one_step(scaling_of(c))) continue;
      single.push_back(&c);
      weights.push_back(c.weight);
      bits.push_back(c.spec[0]);
    }
    if (single.empty()) return;
    Tensor steps = weight_step_many(weights, bits);
    for (size_t l = 0; l < single.size(); ++l) single[l]->step = torch::stable::narrow(steps, 0, (int64_t)l, 1);
  }

  // Layers with one step in one launch, the others one by one.
  static void program_many(std::vector<Crossbar>& layers, const std::vector<Tensor>& scales,
                           const std::vector<Tensor>& outs) {
    if (layers.empty()) return;
    find_single_steps(layers);
    std::vector<Tensor> dense(layers.size());
    std::vector<cuda::Program> programs;
    for (size_t l = 0; l < layers.size(); ++l) {
      if (!generic::one_step(scaling_of(layers[l]))) {
        program(layers[l], outs[l], 0, layers[l].chips());
        continue;
      }
      programs.push_back(program_into(layers[l], dense[l], outs[l]));
      if (!scales.empty()) programs.back().scale = floats(scales[l]);
    }
    const DeviceGuard here(layers[0].weight);
    STD_CUDA_CHECK(cuda::program_many(programs.data(), (int)programs.size(), here.stream()));
  }

  static std::optional<Tensor> product(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias,
                                       const aten::Convolution& p, bool shared, const Epilogue& epilogue) {
    auto layer = forward_product(c, x, p, shared);
    if (!layer) return std::nullopt;
    layer->f.x_type = out_type(x);
    if (cuda::fits_one_pass(layer->f) && takes_one_pass(c, cuda::Direction::kForward, *layer))
      return one_pass(*layer, c, x, shared, x, &bias, epilogue, cuda::one_pass_partition, cuda::one_pass_product);
    if (fits_chip_batch(c, x)) return chip_batch_product(c, x, bias, p, shared, epilogue);
    return std::nullopt;
  }

  // Every chip's gradient with respect to its x, chip-major, in x's memory format.
  static std::optional<Tensor> input_gradient(Crossbar& c, const Tensor& grad, const Tensor& x,
                                              const aten::Convolution& p) {
    auto layer = gradient_product(c, grad, x, p);
    if (!layer) return std::nullopt;
    layer->f.x_type = out_type(x);
    if (!cuda::gradient_fits_one_pass(layer->f) || !takes_one_pass(c, cuda::Direction::kInputGradient, *layer))
      return std::nullopt;
    return one_pass(*layer, c, grad, false, x, nullptr, {}, cuda::one_pass_gradient_partition, cuda::one_pass_gradient);
  }

  // Launches a one-pass product that gathers `seen`. The result has the type and the memory format of `like`.
  static Tensor one_pass(LayerProduct& layer, Crossbar& c, const Tensor& seen, bool shared, const Tensor& like,
                         const std::optional<Tensor>* bias, const Epilogue& epilogue,
                         cudaError_t (*partition_of)(const cuda::OnePassProduct&, cuda::Partition*),
                         cudaError_t (*launch)(const cuda::OnePassProduct&, const cuda::Partition&, float*,
                                               cudaStream_t)) {
    cuda::OnePassProduct& f = layer.f;
    f.program = program_of(c, layer.weight);
    const DeviceGuard here(c.weight);
    const Tensor y = aten::empty(layer.sizes, like.scalar_type(), like, aten::is_channels_last(like));
    if (bias) set_epilogue(layer, c, *bias, epilogue);
    f.x = seen.data_ptr();
    f.y = y.data_ptr();
    f.y_type = f.x_type;
    f.x_strides = strides_of(seen, f.images, shared);
    f.y_strides = strides_of(y, f.images, false);
    cuda::Partition partition = {};
    STD_CUDA_CHECK(partition_of(f, &partition));
    std::optional<Tensor> sums;
    if (partition.floats > 0) sums = aten::empty({partition.floats}, ScalarType::Float, c.weight);
    STD_CUDA_CHECK(launch(f, partition, sums ? static_cast<float*>(sums->data_ptr()) : nullptr, here.stream()));
    return y;
  }

  // torch's product, for all chips at once.
  static Tensor chip_batch_product(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias,
                                   const aten::Convolution& p, bool shared, const Epilogue& e) {
    const Tensor all = weights(c, c.chips(), x.scalar_type(), aten::is_channels_last(x));
    program(c, all, 0, c.chips());
    const Tensor y = x.dim() == 4 ? conv2d_chip_batch(c, x, all, p, shared) : linear_chip_batch(c, x, all, shared);
    if (bias || !e.empty()) epilogue(c.op, y, e, bias);
    return y;
  }

  // cuDNN's, but never by atomics: this operator asks for its deterministic algorithms.
  static std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x,
                                                                 const Tensor& weight, const aten::Convolution& p,
                                                                 std::array<bool, 3> mask) {
    return aten::convolution_backward(grad, x, weight, p, mask, "nft_ext::convolution_backward");
  }

  // One pass over a dense result that torch has multiplied. `bias`: one that is not in it yet.
  static void epilogue(const char* op, const Tensor& y, const Epilogue& e,
                       const std::optional<Tensor>& bias = std::nullopt) {
    const bool channels_last = aten::is_channels_last(y);
    std::optional<Tensor> scale, shift, residual, offset;
    cuda::Results r = {y.data_ptr(), out_type(y), y.numel(), y.size(1),
                       channels_last || y.dim() == 2 ? 1 : y.size(2) * y.size(3)};
    cuda::Epilogue f = {};
    const DeviceGuard here(y);
    if (bias) {
      check_beside(op, "bias", *bias, y);
      f.bias = dense_floats(aten::cast(*bias, ScalarType::Float), offset);
    }
    f.scale = dense_floats(e.scale, scale);
    f.shift = dense_floats(e.shift, shift);
    if (e.residual) {
      residual = y.dim() == 4 ? aten::in_format(*e.residual, channels_last) : aten::contiguous(*e.residual);
      f.residual = residual->data_ptr();
    }
    f.relu = e.relu;
    STD_CUDA_CHECK(cuda::run_epilogue(r, f, here.stream()));
  }
};

void nothing_to_release() {}  // torch's allocator frees its own memory before it fails

}  // namespace
}  // namespace nft

#define NFT_BOX(f) TORCH_BOX((&nft::WithReasons<&f, &nft::nothing_to_release>::call))

STABLE_TORCH_LIBRARY_IMPL(nft_ext, CUDA, m) {
  m.impl("draw_key", NFT_BOX(nft::draw_key));
  m.impl("weight_step", NFT_BOX(nft::weight_step));
  m.impl("weight_step_many", NFT_BOX(nft::weight_step_many));
  m.impl("quantize", NFT_BOX(nft::quantize));
  m.impl("program", NFT_BOX(nft::operators::program<nft::Cuda>));
  m.impl("program_many", NFT_BOX(nft::operators::program_many<nft::Cuda>));
  m.impl("epilogue_", NFT_BOX(nft::operators::epilogue_<nft::Cuda>));
  m.impl("noisy_linear", NFT_BOX(nft::operators::noisy_linear<nft::Cuda>));
  m.impl("noisy_linear_fused", NFT_BOX(nft::operators::noisy_linear_fused<nft::Cuda>));
  m.impl("noisy_linear_backward", NFT_BOX(nft::operators::noisy_linear_backward<nft::Cuda>));
  m.impl("noisy_conv2d", NFT_BOX(nft::operators::noisy_conv2d<nft::Cuda>));
  m.impl("noisy_conv2d_fused", NFT_BOX(nft::operators::noisy_conv2d_fused<nft::Cuda>));
  m.impl("noisy_conv2d_backward", NFT_BOX(nft::operators::noisy_conv2d_backward<nft::Cuda>));
}
