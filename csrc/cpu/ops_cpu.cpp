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

// Table entries that need no gather: mean[i] == i and all deviations equal.
bool constant_table(const float* table, int64_t levels) {
  for (int64_t i = 0; i < levels; ++i)
    if (table[i] != (float)i || table[levels + i] != table[levels]) return false;
  return true;
}

const float* weights(const Crossbar& c, Tensor& holder) {
  holder = torch::stable::contiguous(c.weight);
  return static_cast<const float*>(holder.data_ptr());
}

struct Cpu {
  static Tensor memory(const Ints& sizes, ScalarType dtype, const Tensor& like) { return Recycled::empty(sizes, dtype, like); }

  static void program(const Crossbar& c, const Tensor& out, int64_t first_chip, int64_t chips) {
    Tensor holder = c.weight;
    Program p;
    p.n = c.weight.numel();
    p.weight = c.codes ? nullptr : weights(c, holder);
    p.codes = c.codes ? c.codes->data_ptr() : nullptr;
    p.weight_bits = (int)c.device[0];
    p.device_bits = (int)c.device[1];
    p.path = (int)c.device[2];
    p.mapping = (int)c.device[3];
    p.step = *static_cast<const float*>(c.step.data_ptr());
    p.table = static_cast<const float*>(c.table.data_ptr());
    p.constant_table = p.path != 0 && constant_table(p.table, int64_t(1) << (p.path == 2 ? p.device_bits : p.weight_bits));
    p.keys = static_cast<const int64_t*>(c.key.data_ptr()) + 2 * first_chip;
    p.chips = (int)chips;
    p.stream = (uint32_t)c.stream;
    p.out_type = out.scalar_type() == ScalarType::Float ? OutType::kFloat32 : OutType::kBFloat16;
    p.out = out.data_ptr();
    const Kernels& k = kernels();
    deal(chunks_of(p.n), kChunksPerPiece, [&](int64_t begin, int64_t end) { k.program(p, begin, end); });
  }
};

// s = fl(max|W| / (2^M - 1)); non-finite weights are an error here, where reading the result is free.
Tensor weight_step(Tensor weight, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "weight_step", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "weight_step", "weight_bits", "must be in 1..16", weight_bits);
  const Tensor dense = torch::stable::contiguous(weight);
  const float* w = static_cast<const float*>(dense.data_ptr());
  const Kernels& k = kernels();
  const int64_t n = dense.numel();
  std::vector<uint32_t> largest((n + kWeightsPerPiece - 1) / kWeightsPerPiece, 0);
  deal(n, kWeightsPerPiece, [&](int64_t begin, int64_t end) {
    largest[begin / kWeightsPerPiece] = k.abs_max_bits(w + begin, end - begin);
  });
  uint32_t bits = 0;
  for (uint32_t part : largest) bits = std::max(bits, part);
  float abs_max;
  memcpy(&abs_max, &bits, sizeof abs_max);
  check(bits < 0x7f800000u, "weight_step", "weight", "must be finite (no NaN, no infinity)", abs_max);
  Tensor step = aten::empty({}, ScalarType::Float, weight);
  *static_cast<float*>(step.data_ptr()) = k.step(abs_max, (int)weight_bits);
  return step;
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
