// One layer's weights and noise as an operator receives them, and the checks that every operator shares.
#pragma once

#include "core/conductance.h"
#include "core/scaling.h"
#include "operators/aten.h"

namespace nft {

struct Crossbar {
  const char* op;  // the operator, for its error messages
  Tensor weight;
  std::optional<Tensor> codes;
  std::optional<Tensor> step;  // none: the first Backend::program finds the steps, from all weights
  Tensor table, key;
  int64_t stream;
  Ints spec;                      // weight_bits, device_bits, path, mapping, then the scaling
  std::vector<float> found = {};  // the steps that the CPU found: no tensor is made for them

  int64_t chips() const { return key.size(0); }
};

constexpr size_t kDeviceInts = 4;                         // of Crossbar::spec, before the scaling
constexpr size_t kScalingInts = 4;                        // sharing, tile_rows, output_dim, groups
constexpr size_t kSpecInts = kDeviceInts + kScalingInts;  // of Crossbar::spec

// Which weights share a step: the first number of a scaling.
enum Sharing : int64_t { kShareAll = 0, kShareGroup = 1, kShareOutput = 2, kShareTile = 3 };

// The scaling of a weight, from its four numbers; none, or sharing 0: one step.
inline Scaling scaling_of(const char* op, const Tensor& weight, const int64_t* numbers) {
  const int64_t sharing = numbers[0], tile_rows = numbers[1], output_dim = numbers[2];
  int64_t groups = numbers[3];
  check(sharing >= kShareAll && sharing <= kShareTile, op, "scaling",
        "needs sharing 0 (all), 1 (group), 2 (output) or 3 (tile)", sharing);
  if (sharing == kShareAll) return {};
  check(output_dim >= 0 && output_dim < weight.dim(), op, "scaling", "needs an output_dim of the weight", output_dim);
  if (groups == 0 && output_dim > 0) groups = weight.size(0);
  Scaling s;
  int64_t before = 1;
  for (int64_t dim = 0; dim < weight.dim(); ++dim) {
    if (dim < output_dim) before *= weight.size(dim);
    if (dim > output_dim) s.k2 *= weight.size(dim);
  }
  check(groups >= 1 && before % groups == 0, op, "scaling",
        "needs groups that divide the dimensions before output_dim; 0 means the size of dim 0", groups);
  s.groups = groups;
  s.k1 = before / groups;
  s.outputs = weight.size(output_dim);
  if (sharing == kShareGroup) {  // a group's weights lie side by side
    s.k2 *= s.k1 * s.outputs;
    s.k1 = s.outputs = 1;
  }
  const int64_t inputs = s.k1 * s.k2;
  check(sharing != kShareTile || tile_rows >= 1, op, "scaling", "needs tile_rows >= 1 for tiles", tile_rows);
  s.rows = std::max<int64_t>(1, sharing == kShareTile ? std::min(tile_rows, inputs) : inputs);
  s.tiles = std::max<int64_t>(1, (inputs + s.rows - 1) / s.rows);
  return s;
}

inline Scaling scaling_of(const Crossbar& c) { return scaling_of(c.op, c.weight, c.spec.data() + kDeviceInts); }

// The argument of weight_step and quantize, which may be empty.
inline Scaling scaling_of(const char* op, const Tensor& weight, const Ints& numbers) {
  check(numbers.empty() || numbers.size() == kScalingInts, op, "scaling",
        "must be empty or hold sharing, tile_rows, output_dim, groups", numbers);
  return numbers.empty() ? Scaling{} : scaling_of(op, weight, numbers.data());
}

// The shape of the steps.
inline Ints step_sizes(const Scaling& s, const int64_t* numbers) {
  if (generic::one_step(s)) return {};
  if (numbers[0] == kShareGroup) return {s.groups};
  if (numbers[0] == kShareOutput) return {s.groups, s.outputs};
  return {s.groups, s.outputs, s.tiles};
}

// Every tensor of a call lies on the weight's torch device: a kernel reads nothing else.
inline void check_beside(const char* op, const char* argument, const Tensor& t, const Tensor& weight) {
  const bool beside = t.is_cpu() ? weight.is_cpu()
                                 : t.is_cuda() && weight.is_cuda() && t.get_device_index() == weight.get_device_index();
  check(beside, op, argument, "must be on the weight's torch device", "another device");
}
inline void check_beside(const char* op, const char* argument, const std::optional<Tensor>& t, const Tensor& weight) {
  if (t) check_beside(op, argument, *t, weight);
}

inline void check_float_type(const char* op, const char* argument, ScalarType t, bool on_cuda) {
  check(t == ScalarType::Float || t == ScalarType::BFloat16 || (on_cuda && t == ScalarType::Half), op, argument,
        "must be float32 or bfloat16 (or float16 on CUDA)", "another dtype");
}

// Reading a tensor whose owner has taken its memory back would be a crash: FSDP does that to weights between forwards.
inline void check_in_memory(const char* op, const char* argument, const Tensor& t) {
  int64_t bytes, last;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &last));
  for (int64_t dim = 0; dim < t.dim(); ++dim) {
    if (t.size(dim) == 0) return;
    last += (t.size(dim) - 1) * t.stride(dim);
  }
  check((last + 1) * (int64_t)t.element_size() <= bytes, op, argument,
        "must be in memory (FSDP frees weights outside its forward)", t.sizes());
}

// What holds for every weight.
inline void check_weight(const char* op, const Tensor& weight) {
  const ScalarType t = weight.scalar_type();
  check(t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half, op, "weight",
        "must be float32, bfloat16 or float16", "another dtype");
  check_in_memory(op, "weight", weight);
}

// The arguments of weight_step and quantize.
inline void check_quantizer(const char* op, const Tensor& weight, int64_t weight_bits) {
  check_weight(op, weight);
  check(weight_bits >= 1 && weight_bits <= 16, op, "weight_bits", "must be in 1..16", weight_bits);
}

inline void check_step(const char* op, const Tensor& step, const Scaling& s) {
  if (generic::one_step(s)) {
    check(step.scalar_type() == ScalarType::Float && step.numel() == 1, op, "step", "must be one float32",
          step.sizes());
    return;
  }
  check(step.scalar_type() == ScalarType::Float && step.is_contiguous() && step.numel() == generic::step_count(s), op,
        "step", "must be the contiguous float32 result of nft_ext::weight_step for this weight and scaling",
        step.sizes());
}

// Codes of up to 15 bits take two bytes: one bit is the sign.
inline ScalarType code_type(int64_t weight_bits) { return weight_bits <= 15 ? ScalarType::Short : ScalarType::Int; }

// All that can be checked without reading a tensor's values.
inline void check_crossbar(const Crossbar& c) {
  check_weight(c.op, c.weight);
  check_beside(c.op, "step", c.step, c.weight);
  check_beside(c.op, "codes", c.codes, c.weight);
  check_beside(c.op, "table", c.table, c.weight);
  check_beside(c.op, "key", c.key, c.weight);
  check(c.step || !c.codes, c.op, "step", "must be given with codes", "none");
  check(c.key.scalar_type() == ScalarType::Long && c.key.dim() == 2 && c.key.size(1) == 2 && c.key.size(0) > 0, c.op,
        "key", "must be int64 [S, 2] with S >= 1", c.key.sizes());
  check(c.key.is_contiguous(), c.op, "key", "must be contiguous", "a strided tensor");
  check(c.chips() <= INT32_MAX, c.op, "key", "must have fewer than 2^31 chips", c.chips());
  check(c.spec.size() == kSpecInts, c.op, "spec",
        "must hold weight_bits, device_bits, path, mapping and a scaling of four numbers", c.spec.size());
  const int64_t m = c.spec[0], k = c.spec[1], path = c.spec[2];
  check(m >= 1 && m <= 16 && k >= 1 && m % k == 0, c.op, "spec",
        "needs weight_bits in 1..16, a multiple of device_bits", c.spec);
  check(path >= 0 && path <= 2, c.op, "spec", "needs path 0 (off), 1 (fast) or 2 (per device)", path);
  const int64_t entries = path == 2 ? (int64_t(2) << k) + generic::kLimitCount : int64_t(2) << m;
  check(c.table.scalar_type() == ScalarType::Float && c.table.is_contiguous(), c.op, "table",
        "must be contiguous float32", "another tensor");
  static_assert(generic::kLimitCount == 6, "the next message names this number");
  check(path == 0 || c.table.numel() == entries, c.op, "table",
        "must have 2 * 2^M entries (fast path) or 2 * 2^K + 6 (per device)", c.table.numel());
  check(c.spec[3] == 0 || c.spec[3] == 1, c.op, "spec", "needs mapping 0 or 1", c.spec[3]);
  const Scaling scaling = scaling_of(c);
  if (c.step) check_step(c.op, *c.step, scaling);
  check(c.stream >= 0 && c.stream <= 0xffffffffll, c.op, "stream", "must be a 32-bit unsigned number", c.stream);
  if (c.codes)
    check(c.codes->scalar_type() == code_type(m) && c.codes->numel() == c.weight.numel() && c.codes->is_contiguous(),
          c.op, "codes", "must be the contiguous result of nft_ext::quantize for this weight", c.codes->sizes());
}

// ---- the operators that take several layers: lists with one entry per weight

inline void check_count(const char* op, const char* argument, size_t size, size_t weights) {
  check(size == weights, op, argument, "must hold one entry per weight", size);
}

inline void check_specs(const char* op, const Ints& specs, size_t weights) {
  check(specs.size() == kSpecInts * weights, op, "specs", "must hold eight numbers per weight", specs.size());
}

inline Ints spec_of_layer(const Ints& specs, size_t layer) {
  return Ints(specs.begin() + kSpecInts * layer, specs.begin() + kSpecInts * (layer + 1));
}

// ---- x and what has the shape of a result

inline void check_x(const Crossbar& c, const Tensor& x) {
  check_beside(c.op, "x", x, c.weight);
  check_float_type(c.op, "x", x.scalar_type(), x.is_cuda());
  check_in_memory(c.op, "x", x);
}

// Rows of dim 0 that each chip sees.
inline int64_t rows_per_chip(const char* op, const Tensor& x, int64_t chips, bool shared) {
  if (shared) return x.size(0);
  check(x.size(0) % chips == 0, op, "x", "dim 0 must be a multiple of the number of chips", x.size(0));
  return x.size(0) / chips;
}

// The rows of x that chip `chip` sees.
inline Tensor rows_of(const Tensor& x, int64_t chip, int64_t rows, bool shared, int64_t chips) {
  if (shared || chips == 1) return x;
  Tensor view = x;
  return torch::stable::narrow(view, 0, chip * rows, rows);
}

inline std::optional<Tensor> cast_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& weight,
                                       ScalarType dtype) {
  if (!bias) return std::nullopt;
  check_beside(op, "bias", *bias, weight);
  if (bias->scalar_type() != ScalarType::Double) check_float_type(op, "bias", bias->scalar_type(), true);
  check(bias->dim() == 1 && bias->size(0) == weight.size(0), op, "bias", "must be [out]", bias->sizes());
  return aten::cast(*bias, dtype);
}

// For a result's gradient and a residual: the dtype of x and the result's sizes.
inline void check_like_result(const Crossbar& c, const char* argument, const Tensor& t, const Tensor& x,
                              const Ints& sizes) {
  check_beside(c.op, argument, t, c.weight);
  check(t.scalar_type() == x.scalar_type(), c.op, argument, "must have x's dtype", "another dtype");
  if (sizes_of(t) == sizes) return;
  std::ostringstream rule;
  rule << "must have the result's shape ";
  show(rule, sizes);
  check(false, c.op, argument, rule.str().c_str(), t.sizes());
}

// The sum over chips of a chip-major tensor: [S * B, ...] -> [B, ...].
inline Tensor sum_over_chips(const Tensor& t, int64_t chips) {
  if (chips == 1) return t;
  Ints sizes = sizes_of(t);
  sizes[0] /= chips;
  sizes.insert(sizes.begin(), chips);
  const Ints first{0};
  return torch::stable::sum(torch::stable::reshape(t, sizes), IntHeaderOnlyArrayRef(first));
}

// Which gradients are wanted: bit 0 for x, 1 for the weight, 2 for the bias.
inline std::array<bool, 3> mask_of(const char* op, int64_t wanted) {
  check(wanted >= 0 && wanted <= 7, op, "wanted", "must be in 0..7", wanted);
  return {(wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0};
}

}  // namespace nft
