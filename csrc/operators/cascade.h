// Layers that feed each other, in one call: noisy_linear_fused and noisy_conv2d_fused, layer after layer, without
// Python and torch's dispatcher between them.
#pragma once

#include "operators/conv2d.h"
#include "operators/linear.h"

namespace nft {

// One layer's row of the wiring. Values are numbered: the inputs first, then the layers' results.
struct Wires {
  static constexpr size_t kInts = 10;

  int64_t input, residual;  // values; residual -1: none
  bool relu;
  aten::Convolution geometry;  // of a convolution; a linear layer ignores it

  explicit Wires(const int64_t* row)
      : input(row[0]),
        residual(row[1]),
        relu(row[2] != 0),
        geometry{{row[3], row[4]}, {row[5], row[6]}, {row[7], row[8]}, row[9]} {}
};

// Index of the last layer that reads each value; the number of layers if it is returned, 0 if it is never read.
inline std::vector<int64_t> last_readers(const char* op, const std::vector<Wires>& wiring, int64_t inputs,
                                         const Ints& kept) {
  const int64_t layers = (int64_t)wiring.size();
  std::vector<int64_t> last((size_t)(inputs + layers), 0);
  for (int64_t l = 0; l < layers; ++l) {
    check(wiring[l].input >= 0 && wiring[l].input < inputs + l, op, "wiring",
          "must take x from the inputs or an earlier layer", wiring[l].input);
    check(wiring[l].residual >= -1 && wiring[l].residual < inputs + l, op, "wiring",
          "must take a residual from the inputs or an earlier layer, or be -1", wiring[l].residual);
    last[(size_t)wiring[l].input] = l;
    if (wiring[l].residual >= 0) last[(size_t)wiring[l].residual] = l;
  }
  for (size_t i = 0; i < kept.size(); ++i) {
    check(kept[i] >= inputs && kept[i] < inputs + layers && (i == 0 || kept[i] > kept[i - 1]), op, "kept",
          "must number layers' results in ascending order", kept[i]);
    last[(size_t)kept[i]] = layers;
  }
  return last;
}

namespace operators {

// The kept results. Each chip of a layer sees its own x, chip-major, unless the layer has one chip.
template <class Backend>
std::vector<Tensor> noisy_cascade(std::vector<Tensor> inputs, std::vector<Tensor> weights,
                                  std::vector<std::optional<Tensor>> biases, std::vector<Tensor> tables,
                                  std::vector<Tensor> keys, Ints streams, Ints specs,
                                  std::vector<std::optional<Tensor>> scales, std::vector<std::optional<Tensor>> shifts,
                                  Ints wiring, Ints kept) {
  const char* op = "noisy_cascade";
  const size_t count = weights.size();
  check_count(op, "biases", biases.size(), count);
  check_count(op, "tables", tables.size(), count);
  check_count(op, "keys", keys.size(), count);
  check_count(op, "streams", streams.size(), count);
  check_specs(op, specs, count);
  check_count(op, "scales", scales.size(), count);
  check_count(op, "shifts", shifts.size(), count);
  check(wiring.size() == Wires::kInts * count, op, "wiring", "must hold ten numbers per weight", wiring.size());
  std::vector<Wires> rows;
  for (size_t l = 0; l < count; ++l) rows.emplace_back(wiring.data() + l * Wires::kInts);
  const std::vector<int64_t> last = last_readers(op, rows, (int64_t)inputs.size(), kept);

  std::vector<std::optional<Tensor>> values(inputs.begin(), inputs.end());
  for (size_t l = 0; l < count; ++l) {
    const Wires& wires = rows[l];
    Epilogue e{scales[l], shifts[l], std::nullopt, wires.relu};
    if (wires.residual >= 0) e.residual = values[(size_t)wires.residual];
    const Tensor& x = *values[(size_t)wires.input];
    Crossbar c{op, weights[l], std::nullopt, std::nullopt, tables[l], keys[l], streams[l], spec_of_layer(specs, l)};
    const bool shared = c.chips() == 1;
    Tensor y = weights[l].dim() == 2 ? linear_product<Backend>(std::move(c), x, biases[l], shared, e)
                                     : conv2d_product<Backend>(std::move(c), x, biases[l], wires.geometry, shared, e);
    values.push_back(std::move(y));
    // A value that no later layer reads goes at once: its memory is in the cache and serves the next result.
    for (int64_t value : {wires.input, wires.residual})
      if (value >= (int64_t)inputs.size() && last[(size_t)value] == (int64_t)l) values[(size_t)value].reset();
  }
  std::vector<Tensor> results;
  for (int64_t value : kept) results.push_back(*values[(size_t)value]);
  return results;
}

}  // namespace operators
}  // namespace nft
