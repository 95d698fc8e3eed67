// Which weights of a layer share a step.
//
// A stored weight is viewed as [groups, k1, outputs, k2], row-major. Within a group, element (k1, o, k2) connects
// output o with input k1 * K2 + k2. An array holds `rows` inputs, so it cuts the inputs of an output into tiles. Each
// tile of each output of each group has a step, at [group, output, tile].
#pragma once

#include <stdint.h>

#include "core/macros.h"

namespace nft {

struct Scaling {
  int64_t groups = 0;  // 0: all weights share one step
  int64_t k1 = 1, outputs = 1, k2 = 1;
  int64_t rows = 1;   // inputs per tile
  int64_t tiles = 1;  // per output
};

namespace NFT_ISA {

NFT_FN bool one_step(const Scaling& s) { return s.groups == 0; }

// Whether the weights of a step lie side by side, in the order of the steps.
NFT_FN bool steps_in_order(const Scaling& s) { return s.k1 == 1; }

NFT_FN int64_t step_count(const Scaling& s) { return one_step(s) ? 1 : s.groups * s.outputs * s.tiles; }

// Index of the step of element i.
NFT_FN int64_t step_index(const Scaling& s, int64_t i) {
  const int64_t k2 = i % s.k2, row = i / s.k2, output = row % s.outputs, outer = row / s.outputs;
  const int64_t group = outer / s.k1, k1 = outer % s.k1;
  return (group * s.outputs + output) * s.tiles + (k1 * s.k2 + k2) / s.rows;
}

}  // namespace NFT_ISA
}  // namespace nft
