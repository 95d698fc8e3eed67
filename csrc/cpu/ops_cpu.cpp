// The operators on the CPU: the sampler over torch's own threads.
#include <algorithm>

#include "../product.h"
#include "deal.h"
#include "recycled.h"
#include "sampler.h"

namespace nft {
namespace {

// About 16,000 weights a piece: tens of microseconds, well above the cost of taking it.
constexpr int64_t kChunksPerPiece = 64;
constexpr int64_t kWeightsPerPiece = 1 << 16;

// What of the table needs no gather.
void look_at_table(Program& p) {
  const int64_t levels = int64_t(1) << (p.path == 2 ? p.device_bits : p.weight_bits);
  bool plain = p.path != 0, constant = plain;
  for (int64_t i = 0; i < levels && plain; ++i) {
    plain = p.table[i] == (float)i;
    constant = constant && p.table[levels + i] == p.table[levels];
  }
  p.plain_means = plain;
  p.constant_table = plain && constant;
}

const float* weights(const Crossbar& c, Tensor& holder) {
  holder = torch::stable::contiguous(c.weight);
  return static_cast<const float*>(holder.data_ptr());
}

// The largest |weight|, found in pieces by several threads, and the step that follows from it.
class Largest {
 public:
  Largest(const float* weight, int64_t n) : weight_(weight), parts_((size_t)((n + kWeightsPerPiece - 1) / kWeightsPerPiece), 0u) {}

  void look(int64_t begin, int64_t end) {
    parts_[(size_t)(begin / kWeightsPerPiece)] = kernels().abs_max_bits(weight_ + begin, end - begin);
  }

  bool finite() const { return bits() < 0x7f800000u; }

  // s = fl(max|W| / (2^M - 1)).
  float step(int64_t weight_bits) const { return kernels().step(largest(), (int)weight_bits); }

  // Non-finite weights are an error here, where reading the result is free.
  void check_finite(const char* op) const {
    check(finite(), op, "weight", "must be finite (no NaN, no infinity)", largest());
  }

 private:
  uint32_t bits() const {
    uint32_t most = 0;
    for (uint32_t part : parts_) most = std::max(most, part);
    return most;
  }
  float largest() const {
    const uint32_t u = bits();
    float value;
    memcpy(&value, &u, sizeof value);
    return value;
  }

  const float* weight_;
  std::vector<uint32_t> parts_;
};

Tensor scalar(float value, const Tensor& like) {
  Tensor t = aten::empty({}, ScalarType::Float, like);
  *static_cast<float*>(t.data_ptr()) = value;
  return t;
}

struct Cpu {
  static Tensor memory(const Ints& sizes, ScalarType dtype, const Tensor& like) { return Recycled::empty(sizes, dtype, like); }

  static void program(Crossbar& c, const Tensor& out, int64_t first_chip, int64_t chips) {
    Tensor holder = c.weight;
    Program p;
    p.n = c.weight.numel();
    p.weight = c.codes ? nullptr : weights(c, holder);
    p.codes = c.codes ? c.codes->data_ptr() : nullptr;
    p.weight_bits = (int)c.device[0];
    p.device_bits = (int)c.device[1];
    p.path = (int)c.device[2];
    p.mapping = (int)c.device[3];
    p.step = c.step ? *static_cast<const float*>(c.step->data_ptr()) : 0.0f;
    p.table = static_cast<const float*>(c.table.data_ptr());
    look_at_table(p);
    p.keys = static_cast<const int64_t*>(c.key.data_ptr()) + 2 * first_chip;
    p.chips = (int)chips;
    p.stream = (uint32_t)c.stream;
    p.out_type = out.scalar_type() == ScalarType::Float ? OutType::kFloat32 : OutType::kBFloat16;
    p.out = out.data_ptr();
    const Kernels& k = kernels();
    if (c.step) {
      deal(chunks_of(p.n), kChunksPerPiece, [&](int64_t begin, int64_t end) { k.program(p, begin, end); });
      return;
    }
    Largest largest(p.weight, p.n);
    deal_twice(p.n, kWeightsPerPiece, [&](int64_t begin, int64_t end) { largest.look(begin, end); },
               [&] {
                 Program known = p;
                 known.step = largest.finite() ? largest.step(p.weight_bits) : 0.0f;
                 return known;
               },
               chunks_of(p.n), kChunksPerPiece,
               [&](int64_t begin, int64_t end, const Program& known) { k.program(known, begin, end); });
    largest.check_finite(c.op);
    c.step = scalar(largest.step(p.weight_bits), c.weight);
  }
};

Tensor weight_step(Tensor weight, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "weight_step", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "weight_step", "weight_bits", "must be in 1..16", weight_bits);
  const Tensor dense = torch::stable::contiguous(weight);
  Largest largest(static_cast<const float*>(dense.data_ptr()), dense.numel());
  deal(dense.numel(), kWeightsPerPiece, [&](int64_t begin, int64_t end) { largest.look(begin, end); });
  largest.check_finite("weight_step");
  return scalar(largest.step(weight_bits), weight);
}

Tensor quantize(Tensor weight, Tensor step, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "quantize", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "quantize", "weight_bits", "must be in 1..16", weight_bits);
  check(step.scalar_type() == ScalarType::Float && step.numel() == 1, "quantize", "step", "must be one float32", text(step.sizes()));
  const Tensor dense = torch::stable::contiguous(weight);
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
  m.impl("weight_step", TORCH_BOX(&nft::weight_step));
  m.impl("quantize", TORCH_BOX(&nft::quantize));
  m.impl("program", TORCH_BOX(&nft::CpuOperators::program));
  m.impl("noisy_linear", TORCH_BOX(&nft::CpuOperators::linear));
  m.impl("noisy_linear_backward", TORCH_BOX(&nft::CpuOperators::linear_backward));
  m.impl("noisy_conv2d", TORCH_BOX(&nft::CpuOperators::conv2d));
  m.impl("noisy_conv2d_backward", TORCH_BOX(&nft::CpuOperators::conv2d_backward));
}
