// The operators on the CPU: the sampler over torch's own threads.
#include <algorithm>

#include "../keys.h"
#include "../operators.h"
#include "fused.h"
#include "program.h"
#include "recycled.h"

namespace nft {
namespace {

struct Cpu {
  static Tensor memory(const Ints& sizes, ScalarType dtype, const Tensor& like) { return Recycled::empty(sizes, dtype, like); }

  static bool can_be_channels_last(const Crossbar&) { return false; }

  // For weights [chips * out, ...], in their logical order always.
  static Tensor weights(const Crossbar& c, int64_t chips, ScalarType dtype, bool) {
    Ints sizes = sizes_of(c.weight);
    sizes[0] *= chips;
    return memory(sizes, dtype, c.weight);
  }

  static void program(Crossbar& c, const Tensor& out, int64_t first_chip, int64_t chips) {
    Tensor holder = c.weight;
    Program p = program_of(c, holder);
    p.keys += 2 * first_chip;
    p.chips = (int)chips;
    p.out_type = out.scalar_type() == ScalarType::Float ? OutType::kFloat32 : OutType::kBFloat16;
    p.out = out.data_ptr();
    if (has_step(c)) {
      set_step(p, p.step);
      deal({programming(p)});
      return;
    }
    const int64_t pieces = programming(p).pieces;
    c.found = run_finding_step(c.op, p, pieces, [&](std::vector<Phase> phases, Largest* looking) {
      phases.push_back(programming(p, looking));
      deal(phases);
    });
  }

  // Programs a crossbar; `looking` sees all weights on the way.
  static Phase programming(const Program& p, Largest* looking = nullptr) {
    return Phase::tiles(chunks_of(p.n), kChunksPerPiece, [&p, looking](int64_t begin, int64_t end) {
      Program piece = p;
      if (looking) piece.largest = looking->part(begin / kChunksPerPiece);
      kernels().program(piece, begin, end);
    });
  }

  // One parallel region for all layers: all steps that are not known, then all weights.
  static void program_many(std::vector<Crossbar>& layers, const std::vector<Tensor>&, const std::vector<Tensor>& outs) {
    std::vector<Tensor> holders(layers.size());
    std::vector<Program> programs(layers.size());
    std::vector<std::unique_ptr<Largest>> found(layers.size());
    std::vector<Phase> looking, steps, programming;
    for (size_t l = 0; l < layers.size(); ++l) {
      Program& p = programs[l];
      p = program_of(layers[l], holders[l]);
      p.out_type = outs[l].scalar_type() == ScalarType::Float ? OutType::kFloat32 : OutType::kBFloat16;
      p.out = outs[l].data_ptr();
      if (has_step(layers[l])) {
        set_step(p, p.step);
      } else {
        const Largest& largest = *(found[l] = std::make_unique<Largest>(p.weight, p.n));
        looking.push_back(found[l]->phase());
        steps.push_back({1, [&p, &largest](int64_t) { set_step(p, largest); }});
      }
      programming.push_back(Cpu::programming(p));
    }
    deal({Phase::joined(looking), Phase::joined(steps), Phase::joined(programming)});
    for (size_t l = 0; l < layers.size(); ++l)
      if (found[l]) found[l]->check_finite(layers[l].op);
  }

  static std::optional<Tensor> product(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias,
                                       const aten::Convolution& p, bool shared, const Epilogue& epilogue) {
    return fused_product(c, x, bias, p, shared, epilogue);
  }

  static std::optional<Tensor> input_gradient(Crossbar&, const Tensor&, const Tensor&, const aten::Convolution&) {
    return std::nullopt;
  }
  static std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                                 const aten::Convolution& p, std::array<bool, 3> mask) {
    return aten::convolution_backward(grad, x, weight, p, mask);
  }
  static void finish(const Crossbar&, const Tensor& y, const Epilogue& epilogue) { finish_in_place(y, epilogue); }
};

Tensor weight_step(Tensor weight, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "weight_step", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "weight_step", "weight_bits", "must be in 1..16", weight_bits);
  const Tensor dense = aten::contiguous(weight);
  Largest largest(static_cast<const float*>(dense.data_ptr()), dense.numel());
  deal({largest.phase()});
  largest.check_finite("weight_step");
  Tensor step = aten::empty({}, ScalarType::Float, weight);
  *static_cast<float*>(step.data_ptr()) = largest.step(weight_bits);
  return step;
}

Tensor weight_step_many(std::vector<Tensor> weights, Ints weight_bits) {
  check(!weights.empty() && weight_bits.size() == weights.size(), "weight_step_many", "weight_bits",
        "must be one a weight, of one weight at least", weight_bits.size());
  Tensor steps = aten::empty({(int64_t)weights.size()}, ScalarType::Float, weights[0]);
  for (size_t l = 0; l < weights.size(); ++l)
    static_cast<float*>(steps.data_ptr())[l] = *static_cast<const float*>(weight_step(weights[l], weight_bits[l]).data_ptr());
  return steps;
}

Tensor quantize(Tensor weight, Tensor step, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "quantize", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "quantize", "weight_bits", "must be in 1..16", weight_bits);
  check(step.scalar_type() == ScalarType::Float && step.numel() == 1, "quantize", "step", "must be one float32", step.sizes());
  const Tensor dense = aten::contiguous(weight);
  const int bytes = weight_bits <= 15 ? 2 : 4;
  Tensor codes = aten::empty(sizes_of(weight), bytes == 2 ? ScalarType::Short : ScalarType::Int, weight);
  const float* w = static_cast<const float*>(dense.data_ptr());
  char* out = static_cast<char*>(codes.data_ptr());
  const float s = *static_cast<const float*>(step.data_ptr());
  const Kernels& k = kernels();
  deal(dense.numel(), kWeightsPerPiece, [&](int64_t begin, int64_t end) {
    k.quantize(w + begin, end - begin, s, (int)weight_bits, out + begin * bytes, bytes);
  });
  return codes;
}

using CpuOperators = Operators<Cpu>;

}  // namespace
}  // namespace nft

STABLE_TORCH_LIBRARY_IMPL(nft_ext, CPU, m) {
  m.impl("draw_key", TORCH_BOX(&nft::draw_key));
  m.impl("draw_keys", TORCH_BOX(&nft::draw_keys));
  m.impl("weight_step", TORCH_BOX(&nft::weight_step));
  m.impl("weight_step_many", TORCH_BOX(&nft::weight_step_many));
  m.impl("finish_", TORCH_BOX(&nft::CpuOperators::finish));
  m.impl("program_many", TORCH_BOX(&nft::CpuOperators::program_many));
  m.impl("quantize", TORCH_BOX(&nft::quantize));
  m.impl("program", TORCH_BOX(&nft::CpuOperators::program));
  m.impl("noisy_linear", TORCH_BOX(&nft::CpuOperators::linear));
  m.impl("noisy_linear_fused", TORCH_BOX(&nft::CpuOperators::linear_fused));
  m.impl("noisy_linear_backward", TORCH_BOX(&nft::CpuOperators::linear_backward));
  m.impl("noisy_conv2d", TORCH_BOX(&nft::CpuOperators::conv2d));
  m.impl("noisy_conv2d_fused", TORCH_BOX(&nft::CpuOperators::conv2d_fused));
  m.impl("noisy_cascade", TORCH_BOX(&nft::CpuOperators::cascade));
  m.impl("noisy_conv2d_backward", TORCH_BOX(&nft::CpuOperators::conv2d_backward));
}
