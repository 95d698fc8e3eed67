// Layers that feed each other, in one call: what noisy_linear_fused and noisy_conv2d_fused do, layer after layer, without a way through
// Python and torch's dispatcher between them.
#pragma once

#include "product.h"

namespace nft {

// One layer's row of the plan. Values are numbered: the inputs first, then the layers' results.
struct CascadeStep {
  static constexpr size_t kInts = 10;

  int64_t input, residual;     // values; residual -1: none
  bool relu;
  aten::Convolution geometry;  // of a convolution; a linear layer ignores it

  explicit CascadeStep(const int64_t* row)
      : input(row[0]), residual(row[1]), relu(row[2] != 0), geometry{{row[3], row[4]}, {row[5], row[6]}, {row[7], row[8]}, row[9]} {}
};

// Up to which layer each value is needed: past the last where it is kept, 0 where by nobody.
inline std::vector<int64_t> needed_until(const char* op, const std::vector<CascadeStep>& steps, int64_t inputs, const Ints& kept) {
  const int64_t layers = (int64_t)steps.size();
  std::vector<int64_t> until((size_t)(inputs + layers), 0);
  for (int64_t l = 0; l < layers; ++l) {
    check(steps[l].input >= 0 && steps[l].input < inputs + l, op, "plan", "must take x from the inputs or a layer before", steps[l].input);
    check(steps[l].residual >= -1 && steps[l].residual < inputs + l, op, "plan",
          "must take a residual from the inputs or a layer before, or be -1", steps[l].residual);
    until[(size_t)steps[l].input] = l;
    if (steps[l].residual >= 0) until[(size_t)steps[l].residual] = l;
  }
  for (size_t i = 0; i < kept.size(); ++i) {
    check(kept[i] >= inputs && kept[i] < inputs + layers && (i == 0 || kept[i] > kept[i - 1]), op, "kept",
          "must number layers' results, ascending", kept[i]);
    until[(size_t)kept[i]] = layers;
  }
  return until;
}

// The results that are kept. A layer's chips see one x each, chip-major, unless it has one chip.
template <class Backend>
std::vector<Tensor> noisy_cascade(const std::vector<Tensor>& inputs, const std::vector<Crossbar>& layers,
                                  const std::vector<std::optional<Tensor>>& biases, const std::vector<std::optional<Tensor>>& scales,
                                  const std::vector<std::optional<Tensor>>& shifts, const Ints& plan, const Ints& kept) {
  std::vector<CascadeStep> steps;
  for (size_t l = 0; l < layers.size(); ++l) steps.emplace_back(plan.data() + l * CascadeStep::kInts);
  const std::vector<int64_t> until = needed_until("noisy_cascade", steps, (int64_t)inputs.size(), kept);

  std::vector<std::optional<Tensor>> values(inputs.begin(), inputs.end());
  for (size_t l = 0; l < layers.size(); ++l) {
    const CascadeStep& s = steps[l];
    Epilogue e{scales[l], shifts[l], std::nullopt, s.relu};
    if (s.residual >= 0) e.residual = values[(size_t)s.residual];
    const bool shared = layers[l].chips() == 1;
    const Tensor& x = *values[(size_t)s.input];
    Tensor y = layers[l].weight.dim() == 2 ? noisy_linear<Backend>(layers[l], x, biases[l], shared, e)
                                           : noisy_conv2d<Backend>(layers[l], x, biases[l], s.geometry, shared, e);
    values.push_back(std::move(y));
    // What nobody needs any more goes at once: its memory, which is in the cache, serves the next result.
    for (int64_t value : {s.input, s.residual})
      if (value >= (int64_t)inputs.size() && until[(size_t)value] == (int64_t)l) values[(size_t)value].reset();
  }
  std::vector<Tensor> results;
  for (int64_t value : kept) results.push_back(*values[(size_t)value]);
  return results;
}

}  // namespace nft
