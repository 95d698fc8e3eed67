// The operators' C++ signatures, as the schemas of ops.cpp spell them, for any backend: what they check and whom they call.
#pragma once

#include "cascade.h"

namespace nft {

template <class Backend>
struct Operators {
  using Codes = std::optional<Tensor>;
  using Step = std::optional<Tensor>;

  static Tensor program(Tensor weight, Codes codes, Step step, Tensor table, Tensor key, int64_t stream, Ints device,
                        ScalarType dtype) {
    Crossbar c{"program", weight, codes, step, table, key, stream, device};
    check_crossbar(c);
    check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || (weight.is_cuda() && dtype == ScalarType::Half), c.op,
          "dtype", "must be float32 or bfloat16 (or float16 on CUDA)", "another dtype");
    Ints sizes = sizes_of(weight);
    sizes.insert(sizes.begin(), c.chips());
    Tensor out = Backend::memory(sizes, dtype, weight);
    Backend::program(c, out, 0, c.chips());
    return out;
  }

  // Rows are multiplied on their way into channels-last memory only.
  static void check_row_scale(const Crossbar& c, const Tensor& scale, bool channels_last) {
    check(scale.scalar_type() == ScalarType::Float && scale.is_contiguous() && scale.dim() == 1 && scale.size(0) == c.weight.size(0), c.op,
          "scales", "must be contiguous float32 [out], each for its weight", scale.sizes());
    check(channels_last && Backend::can_be_channels_last(c), c.op, "scales",
          "must be none where a weight is not stored channels last", "a scale");
  }

  // Every layer on the same chips: results [S, *weight] in the order of the layers.
  static std::vector<Tensor> program_many(std::vector<Tensor> weights, std::vector<Codes> codes, std::vector<Tensor> steps,
                                          std::vector<Tensor> tables, Tensor key, Ints streams, Ints devices,
                                          std::vector<Tensor> scales, ScalarType dtype, bool channels_last) {
    const char* op = "program_many";
    const size_t count = weights.size();
    check(codes.size() == count, op, "codes", "must be one a weight", codes.size());
    check(steps.empty() || steps.size() == count, op, "steps", "must be one a weight, or none", steps.size());
    check(tables.size() == count, op, "tables", "must be one a weight", tables.size());
    check(streams.size() == count, op, "streams", "must be one a weight", streams.size());
    check(devices.size() == 4 * count, op, "devices", "must be four numbers a weight", devices.size());
    check(scales.empty() || scales.size() == count, op, "scales", "must be one per weight, or none", scales.size());
    check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || (key.is_cuda() && dtype == ScalarType::Half), op,
          "dtype", "must be float32 or bfloat16 (or float16 on CUDA)", "another dtype");
    std::vector<Crossbar> layers;
    std::vector<Tensor> outs;
    for (size_t l = 0; l < count; ++l) {
      Step step;
      if (!steps.empty()) step = steps[l];
      layers.push_back({op, weights[l], codes[l], step, tables[l], key, streams[l],
                        Ints(devices.begin() + 4 * l, devices.begin() + 4 * (l + 1))});
      check_crossbar(layers[l]);
      if (!scales.empty()) check_row_scale(layers[l], scales[l], channels_last);
      check(weights[l].dim() >= 1, op, "weights", "must have one dimension or more", weights[l].sizes());
      outs.push_back(Backend::weights(layers[l], key.size(0), dtype, channels_last));
    }
    Backend::program_many(layers, scales, outs);
    for (size_t l = 0; l < count; ++l) {
      Ints sizes = sizes_of(weights[l]);
      sizes.insert(sizes.begin(), key.size(0));
      outs[l] = torch::stable::reshape(outs[l], sizes);
    }
    return outs;
  }

  // In place on y [N, out] or [N, out, height, width], dense in either memory format: relu(y * scale + shift + residual).
  static void finish(Tensor y, std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> residual, bool relu) {
    const char* op = "finish_";
    check(y.dim() == 2 || y.dim() == 4, op, "y", "must be [N, out] or [N, out, height, width]", y.sizes());
    check(y.is_contiguous() || aten::is_channels_last(y), op, "y", "must be dense, contiguous or channels last", "another layout");
    const ScalarType t = y.scalar_type();
    check(t == ScalarType::Float || t == ScalarType::BFloat16 || (y.is_cuda() && t == ScalarType::Half), op, "y",
          "must be float32 or bfloat16 (or float16 on CUDA)", "another dtype");
    for (const auto& row : {scale, shift})
      if (row)
        check(row->scalar_type() == ScalarType::Float && row->dim() == 1 && row->size(0) == y.size(1), op, "scale and shift",
              "must be float32 [out]", row->sizes());
    if (residual)
      check(residual->scalar_type() == t && sizes_of(*residual) == sizes_of(y), op, "residual", "must have y's shape and dtype",
            residual->sizes());
    const Crossbar nowhere{op, y, std::nullopt, std::nullopt, y, y, 0, {}};
    Backend::finish(nowhere, y, {scale, shift, residual, relu});
  }

  static Tensor linear(Tensor x, Tensor weight, std::optional<Tensor> bias, Codes codes, Step step, Tensor table, Tensor key,
                       int64_t stream, Ints device, bool shared) {
    return noisy_linear<Backend>({"noisy_linear", weight, codes, step, table, key, stream, device}, x, bias, shared);
  }

  static Tensor linear_fused(Tensor x, Tensor weight, std::optional<Tensor> bias, Codes codes, Step step, Tensor table, Tensor key,
                             int64_t stream, Ints device, bool shared, std::optional<Tensor> scale, std::optional<Tensor> shift,
                             std::optional<Tensor> residual, bool relu) {
    return noisy_linear<Backend>({"noisy_linear_fused", weight, codes, step, table, key, stream, device}, x, bias, shared,
                                 {scale, shift, residual, relu});
  }

  static std::tuple<Tensor, Tensor, Tensor> linear_backward(Tensor grad, Tensor x, Tensor weight, Codes codes, Step step,
                                                            Tensor table, Tensor key, int64_t stream, Ints device, bool shared,
                                                            int64_t wanted) {
    return noisy_linear_backward<Backend>({"noisy_linear_backward", weight, codes, step, table, key, stream, device}, grad, x,
                                          shared, mask_of(wanted));
  }

  static Tensor conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, Codes codes, Step step, Tensor table, Tensor key,
                       int64_t stream, Ints device, Ints stride, Ints padding, Ints dilation, int64_t groups, bool shared) {
    return noisy_conv2d<Backend>({"noisy_conv2d", weight, codes, step, table, key, stream, device}, x, bias,
                                 {stride, padding, dilation, groups}, shared);
  }

  static Tensor conv2d_fused(Tensor x, Tensor weight, std::optional<Tensor> bias, Codes codes, Step step, Tensor table, Tensor key,
                             int64_t stream, Ints device, Ints stride, Ints padding, Ints dilation, int64_t groups, bool shared,
                             std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> residual, bool relu) {
    return noisy_conv2d<Backend>({"noisy_conv2d_fused", weight, codes, step, table, key, stream, device}, x, bias,
                                 {stride, padding, dilation, groups}, shared, {scale, shift, residual, relu});
  }

  // Layers that feed each other: plan as CascadeStep reads it, kept numbers the values that are returned.
  static std::vector<Tensor> cascade(std::vector<Tensor> inputs, std::vector<Tensor> weights, std::vector<std::optional<Tensor>> biases,
                                     std::vector<Tensor> codes, std::vector<Tensor> steps, std::vector<Tensor> tables,
                                     std::vector<Tensor> keys, Ints streams, Ints devices, std::vector<std::optional<Tensor>> scales,
                                     std::vector<std::optional<Tensor>> shifts, Ints plan, Ints kept) {
    const char* op = "noisy_cascade";
    const size_t count = weights.size();
    const auto check_size = [&](const char* argument, size_t size, size_t each, const char* rule) {
      check(size == each * count, op, argument, rule, size);
    };
    check_size("biases", biases.size(), 1, "must be one a weight");
    check_size("codes", codes.size(), 1, "must be one a weight");
    check_size("steps", steps.size(), 1, "must be one a weight");
    check_size("tables", tables.size(), 1, "must be one a weight");
    check_size("keys", keys.size(), 1, "must be one a weight");
    check_size("streams", streams.size(), 1, "must be one a weight");
    check_size("devices", devices.size(), 4, "must be four numbers a weight");
    check_size("scales", scales.size(), 1, "must be one a weight");
    check_size("shifts", shifts.size(), 1, "must be one a weight");
    check_size("plan", plan.size(), CascadeStep::kInts, "must be ten numbers a weight");
    std::vector<Crossbar> layers;
    for (size_t l = 0; l < count; ++l)
      layers.push_back({op, weights[l], codes[l], steps[l], tables[l], keys[l], streams[l],
                        Ints(devices.begin() + 4 * l, devices.begin() + 4 * (l + 1))});
    return noisy_cascade<Backend>(inputs, layers, biases, scales, shifts, plan, kept);
  }

  static std::tuple<Tensor, Tensor, Tensor> conv2d_backward(Tensor grad, Tensor x, Tensor weight, Codes codes, Step step,
                                                            Tensor table, Tensor key, int64_t stream, Ints device, Ints stride,
                                                            Ints padding, Ints dilation, int64_t groups, bool shared,
                                                            int64_t wanted) {
    return noisy_conv2d_backward<Backend>({"noisy_conv2d_backward", weight, codes, step, table, key, stream, device}, grad, x,
                                          {stride, padding, dilation, groups}, shared, mask_of(wanted));
  }
};

}  // namespace nft
