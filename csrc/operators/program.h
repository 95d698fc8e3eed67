// Programmed weights as tensors: of one layer, and of several layers on the same chips.
#pragma once

#include "operators/crossbar.h"

namespace nft {

// Rows are multiplied only on their way into channels-last memory.
template <class Backend>
void check_row_scale(const Crossbar& c, const Tensor& scale, bool channels_last) {
  check_beside(c.op, "scales", scale, c.weight);
  check(scale.scalar_type() == ScalarType::Float && scale.is_contiguous() && scale.dim() == 1 &&
            scale.size(0) == c.weight.size(0),
        c.op, "scales", "must be contiguous float32 [out], each for its weight", scale.sizes());
  check(channels_last && Backend::can_be_channels_last(c), c.op, "scales",
        "must be none where a weight is not stored channels last", "a scale");
}

namespace operators {

template <class Backend>
Tensor program(Tensor weight, std::optional<Tensor> codes, std::optional<Tensor> step, Tensor table, Tensor key,
               int64_t stream, Ints spec, ScalarType dtype) {
  Crossbar c{"program", weight, codes, step, table, key, stream, spec};
  check_crossbar(c);
  check_float_type(c.op, "dtype", dtype, weight.is_cuda());
  c.weight = Backend::readable(weight);
  Backend::check_values(c);
  Ints sizes = sizes_of(weight);
  sizes.insert(sizes.begin(), c.chips());
  Tensor out = Backend::memory(sizes, dtype, weight);
  Backend::program(c, out, 0, c.chips());
  return out;
}

// All layers on the same chips: results [S, *weight], in the order of the layers.
template <class Backend>
std::vector<Tensor> program_many(std::vector<Tensor> weights, std::vector<std::optional<Tensor>> codes,
                                 std::vector<Tensor> steps, std::vector<Tensor> tables, Tensor key, Ints streams,
                                 Ints specs, std::vector<Tensor> scales, ScalarType dtype, bool channels_last) {
  const char* op = "program_many";
  const size_t count = weights.size();
  check_count(op, "codes", codes.size(), count);
  check(steps.empty() || steps.size() == count, op, "steps", "must be empty or hold one entry per weight",
        steps.size());
  check_count(op, "tables", tables.size(), count);
  check_count(op, "streams", streams.size(), count);
  check_specs(op, specs, count);
  check(scales.empty() || scales.size() == count, op, "scales", "must be empty or hold one entry per weight",
        scales.size());
  check_float_type(op, "dtype", dtype, key.is_cuda());
  std::vector<Crossbar> layers;
  for (size_t l = 0; l < count; ++l) {
    std::optional<Tensor> step;
    if (!steps.empty()) step = steps[l];
    layers.push_back({op, weights[l], codes[l], step, tables[l], key, streams[l], spec_of_layer(specs, l)});
    check_crossbar(layers[l]);
    layers[l].weight = Backend::readable(weights[l]);
    if (!scales.empty()) check_row_scale<Backend>(layers[l], scales[l], channels_last);
    check(weights[l].dim() >= 1, op, "weights", "must have one dimension or more", weights[l].sizes());
  }
  std::vector<Tensor> outs;
  for (Crossbar& layer : layers) {
    Backend::check_values(layer);
    outs.push_back(Backend::weights(layer, key.size(0), dtype, channels_last));
  }
  Backend::program_many(layers, scales, outs);
  for (size_t l = 0; l < count; ++l) {
    Ints sizes = sizes_of(weights[l]);
    sizes.insert(sizes.begin(), key.size(0));
    outs[l] = torch::stable::reshape(outs[l], sizes);
  }
  return outs;
}

}  // namespace operators
}  // namespace nft
