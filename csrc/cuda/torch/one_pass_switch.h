// Which products take the one-pass kernel (csrc/cuda/one_pass/one_pass.h), which generates the noisy weights itself.
// For the others the sampler programs the weights first, and torch multiplies.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/sampler/vector_access.h"

namespace nft {
namespace cuda {

enum class Direction { kForward, kInputGradient };

// NFT_EXT_ONE_PASS, the switch for tests and measurements.
enum class OnePassRule {
  kAuto,    // up to the columns below
  kAlways,  // every product that the kernel can serve
  kNever    // weights are programmed first, always
};

// `auto` takes the one-pass kernel up to so many columns per chip (output positions of all its images); 0: never.
// The kernel generates a weight once per tile of columns, so it can win only with few columns. Measured on an H100.
// Stage `one_pass` of bench/gpu_check.py repeats the measurement.
constexpr int64_t kFloat32Columns = 32, kBFloat16Columns = 0, kFloat16Columns = 0;
constexpr int64_t kInputGradientColumns = 0;  // of every type

// Rows of a group that `auto` asks for: a tile holds rows of one group only, so fewer would leave most of it empty.
constexpr int64_t kLeastRows = 8;

constexpr int64_t auto_columns(Direction direction, OutType type) {
  if (direction == Direction::kInputGradient) return kInputGradientColumns;
  if (type == OutType::kFloat32) return kFloat32Columns;
  return type == OutType::kBFloat16 ? kBFloat16Columns : kFloat16Columns;
}

// For a product with `rows` rows per group and `columns` columns per chip. The kernel knows `one_step` per weight.
constexpr bool takes_one_pass(OnePassRule rule, Direction direction, OutType type, bool one_step, int64_t rows,
                              int64_t columns) {
  if (!one_step) return false;
  if (rule != OnePassRule::kAuto) return rule == OnePassRule::kAlways;
  return rows >= kLeastRows && columns <= auto_columns(direction, type);
}

// The rule of that name; auto for an empty name. nft_ext/ops/build_info.py refuses the same names.
inline OnePassRule one_pass_named(const std::string& name) {
  if (name.empty() || name == "auto") return OnePassRule::kAuto;
  if (name == "always") return OnePassRule::kAlways;
  if (name == "never") return OnePassRule::kNever;
  throw std::runtime_error("NFT_EXT_ONE_PASS: must be auto, always or never; got " + name);
}

}  // namespace cuda
}  // namespace nft
