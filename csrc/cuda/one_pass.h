// Which products take the one-pass kernel (csrc/cuda/fused.h), which generates the noisy weights itself. The others
// program the weights first and multiply with the library.
#pragma once

#include <stdexcept>
#include <string>

#include "store.h"

namespace nft {
namespace cuda {

enum class Direction { kForward, kInputGradient };

// NFT_EXT_ONE_PASS, the switch for tests and measurements.
enum class OnePass {
  kAuto,    // up to the columns below
  kAlways,  // every shape that the kernel can serve
  kNever    // weights are programmed first, always
};

// Up to so many columns per chip (output positions of all its images) `auto` takes the one-pass kernel; 0: never. That
// kernel generates a weight once per tile of columns, so it can win only where columns are few. As measured on an H100;
// stage `one_pass` of bench/gpu_check.py measures it anew.
constexpr int64_t kFloat32Columns = 32, kBFloat16Columns = 0, kFloat16Columns = 0;
constexpr int64_t kInputGradientColumns = 0;  // of every type

// Rows of a group that `auto` asks for: a tile holds rows of one group only, so fewer would leave most of it empty.
constexpr int64_t kLeastRows = 8;

constexpr int64_t auto_columns(Direction direction, OutType type) {
  if (direction == Direction::kInputGradient) return kInputGradientColumns;
  if (type == OutType::kFloat32) return kFloat32Columns;
  return type == OutType::kBFloat16 ? kBFloat16Columns : kFloat16Columns;
}

// For a product with `rows` rows per group and `columns` columns per chip.
constexpr bool takes_one_pass(OnePass rule, Direction direction, OutType type, int64_t rows, int64_t columns) {
  if (rule != OnePass::kAuto) return rule == OnePass::kAlways;
  return rows >= kLeastRows && columns <= auto_columns(direction, type);
}

// The rule of that name; auto where there is none. nft_ext/ops/build_info.py refuses the same values.
inline OnePass one_pass_named(const std::string& name) {
  if (name.empty() || name == "auto") return OnePass::kAuto;
  if (name == "always") return OnePass::kAlways;
  if (name == "never") return OnePass::kNever;
  throw std::runtime_error("NFT_EXT_ONE_PASS: must be auto, always or never; got " + name);
}

}  // namespace cuda
}  // namespace nft
