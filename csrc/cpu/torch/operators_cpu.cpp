// The operators on the CPU: the sampler over torch's own threads, and the registration of every operator.
#include <algorithm>

#include "cpu/torch/pool_tensor.h"
#include "cpu/torch/one_pass.h"
#include "cpu/torch/program.h"
#include "operators/cascade.h"
#include "operators/draw_key.h"
#include "operators/failure.h"
#include "operators/program.h"

namespace nft {
namespace {

// Programs a crossbar; `abs_max` collects max|W| on the way.
Phase programming(const Program& p, AbsMax* abs_max = nullptr) {
  const int64_t chunks = chunks_per_piece(p);
  return Phase::tiles(chunks_of(p.n), chunks, [&p, abs_max, chunks](int64_t begin, int64_t end) {
    Program piece = p;
    if (abs_max) piece.abs_max = abs_max->part(begin / chunks);
    kernels().program(piece, begin, end);
  });
}

// The functions that operators/per_chip.h asks for.
struct Cpu {
  static Tensor readable(const Tensor& weight) { return weight; }  // every type

  static void check_values(const Crossbar& c) { nft::check_values(c); }

  static Tensor memory(const Ints& sizes, ScalarType dtype, const Tensor& like) {
    return pool_tensor(sizes, dtype, like);
  }

  static bool can_be_channels_last(const Crossbar&) { return false; }

  // For weights [chips * out, ...], always in their logical order.
  static Tensor weights(const Crossbar& c, int64_t chips, ScalarType dtype, bool) {
    Ints sizes = sizes_of(c.weight);
    sizes[0] = for_all_chips(c.op, chips, sizes[0]);
    return memory(sizes, dtype, c.weight);
  }

  static void program(Crossbar& c, const Tensor& out, int64_t first_chip, int64_t chips) {
    Tensor holder = c.weight;
    Program p = program_of(c, holder);
    p.keys += 2 * first_chip;
    p.chips = (int)chips;
    p.out_type = out_type(out);
    p.out = out.data_ptr();
    run_finding_steps(c, p, programming(p).pieces, [&](std::vector<Phase> phases, AbsMax* abs_max) {
      phases.push_back(programming(p, abs_max));
      run_phases(phases);
    });
  }

  // One parallel region for all layers: first the steps that are not known, then the weights.
  static void program_many(std::vector<Crossbar>& layers, const std::vector<Tensor>&, const std::vector<Tensor>& outs) {
    std::vector<Tensor> holders(layers.size());
    std::vector<Program> programs(layers.size());
    std::vector<std::unique_ptr<AbsMax>> found(layers.size());
    std::vector<std::unique_ptr<Maxima>> maxima(layers.size());
    std::vector<Phase> reading, steps, writing;
    for (size_t l = 0; l < layers.size(); ++l) {
      Program& p = programs[l];
      p = program_of(layers[l], holders[l]);
      p.out_type = out_type(outs[l]);
      p.out = outs[l].data_ptr();
      if (finds_steps(p)) {
        found[l] = std::make_unique<AbsMax>(p.weight, p.n, programming(p).pieces);
        writing.push_back(programming(p, found[l].get()));
        continue;
      }
      if (p.steps) {
        if (generic::one_step(p.scaling)) set_step(p, *p.steps);
      } else if (generic::one_step(p.scaling)) {
        const AbsMax& abs_max = *(found[l] = std::make_unique<AbsMax>(p.weight, p.n));
        reading.push_back(found[l]->phase());
        steps.push_back({1, [&p, &abs_max](int64_t) { set_step(p, abs_max); }});
      } else {
        maxima[l] = std::make_unique<Maxima>(p.weight, p.scaling, p.weight_bits);
        reading.push_back(maxima[l]->phase());
        p.steps = maxima[l]->steps();
      }
      writing.push_back(programming(p));
    }
    run_phases({Phase::joined(reading), Phase::joined(steps), Phase::joined(writing)});
    for (size_t l = 0; l < layers.size(); ++l) {
      if (found[l]) found[l]->check_finite(layers[l].op);
      if (maxima[l]) maxima[l]->checked(layers[l].op);
    }
  }

  static constexpr auto product = one_pass_product;

  static std::optional<Tensor> input_gradient(Crossbar&, const Tensor&, const Tensor&, const aten::Convolution&) {
    return std::nullopt;
  }
  static std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x,
                                                                 const Tensor& weight, const aten::Convolution& p,
                                                                 std::array<bool, 3> mask) {
    return aten::convolution_backward(grad, x, weight, p, mask);
  }
  static void epilogue(const char*, const Tensor& y, const Epilogue& e) { epilogue_in_place(y, e); }
};

Tensor weight_step(Tensor weight, int64_t weight_bits, Ints scaling) {
  check_quantizer("weight_step", weight, weight_bits);
  const Scaling s = scaling_of("weight_step", weight, scaling);
  const Tensor dense = aten::contiguous(weight);
  if (!generic::one_step(s)) {
    Tensor steps = aten::empty(step_sizes(s, scaling.data()), ScalarType::Float, weight);
    Maxima maxima(weights_of(dense), s, (int)weight_bits);
    run_phases({maxima.phase()});
    const std::vector<float> found = maxima.checked("weight_step");
    std::copy(found.begin(), found.end(), static_cast<float*>(steps.data_ptr()));
    return steps;
  }
  AbsMax abs_max(weights_of(dense), dense.numel());
  run_phases({abs_max.phase()});
  abs_max.check_finite("weight_step");
  Tensor step = aten::empty({}, ScalarType::Float, weight);
  *static_cast<float*>(step.data_ptr()) = abs_max.step(weight_bits);
  return step;
}

Tensor weight_step_many(std::vector<Tensor> weights, Ints weight_bits) {
  check(!weights.empty() && weight_bits.size() == weights.size(), "weight_step_many", "weight_bits",
        "must hold one entry per weight, for at least one weight", weight_bits.size());
  Tensor steps = aten::empty({(int64_t)weights.size()}, ScalarType::Float, weights[0]);
  for (size_t l = 0; l < weights.size(); ++l)
    static_cast<float*>(steps.data_ptr())[l] = *floats(weight_step(weights[l], weight_bits[l], {}));
  return steps;
}

Tensor quantize(Tensor weight, Tensor step, int64_t weight_bits, Ints scaling) {
  check_quantizer("quantize", weight, weight_bits);
  const Scaling s = scaling_of("quantize", weight, scaling);
  check_step("quantize", step, s);
  check_steps("quantize", step);
  const Tensor dense = aten::contiguous(weight);
  Tensor codes = aten::empty(sizes_of(weight), code_type(weight_bits), weight);
  const int bytes = code_type(weight_bits) == ScalarType::Short ? 2 : 4;
  Program p{};
  p.weight = weights_of(dense);
  p.n = dense.numel();
  p.weight_bits = (int)weight_bits;
  p.scaling = s;
  p.steps = floats(step);
  char* out = static_cast<char*>(codes.data_ptr());
  const Kernels& k = kernels();
  run_tiles(p.n, kWeightsPerPiece, [&](int64_t begin, int64_t end) {
    if (generic::one_step(s))
      k.quantize(p.weight + begin, end - begin, *p.steps, p.weight_bits, out + begin * bytes, bytes);
    else
      k.quantize_runs(p, begin, end, out, bytes);
  });
  return codes;
}

void release_memory() { memory_pool().release(); }

}  // namespace
}  // namespace nft

#define NFT_BOX(f) TORCH_BOX((&nft::WithReasons<&f, &nft::release_memory>::call))

STABLE_TORCH_LIBRARY_IMPL(nft_ext, CPU, m) {
  m.impl("draw_key", NFT_BOX(nft::draw_key));
  m.impl("draw_keys", NFT_BOX(nft::draw_keys));
  m.impl("weight_step", NFT_BOX(nft::weight_step));
  m.impl("weight_step_many", NFT_BOX(nft::weight_step_many));
  m.impl("quantize", NFT_BOX(nft::quantize));
  m.impl("program", NFT_BOX(nft::operators::program<nft::Cpu>));
  m.impl("program_many", NFT_BOX(nft::operators::program_many<nft::Cpu>));
  m.impl("epilogue_", NFT_BOX(nft::operators::epilogue_<nft::Cpu>));
  m.impl("noisy_linear", NFT_BOX(nft::operators::noisy_linear<nft::Cpu>));
  m.impl("noisy_linear_fused", NFT_BOX(nft::operators::noisy_linear_fused<nft::Cpu>));
  m.impl("noisy_linear_backward", NFT_BOX(nft::operators::noisy_linear_backward<nft::Cpu>));
  m.impl("noisy_conv2d", NFT_BOX(nft::operators::noisy_conv2d<nft::Cpu>));
  m.impl("noisy_conv2d_fused", NFT_BOX(nft::operators::noisy_conv2d_fused<nft::Cpu>));
  m.impl("noisy_conv2d_backward", NFT_BOX(nft::operators::noisy_conv2d_backward<nft::Cpu>));
  m.impl("noisy_cascade", NFT_BOX(nft::operators::noisy_cascade<nft::Cpu>));
}
