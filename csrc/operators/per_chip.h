// A product chip by chip: program one chip's weights, multiply with torch's own product, forget them.
//
// The memory for one chip's weights serves the next chip and the next call. No noisy weight outlives a call: a backward
// programs the same chip again from its key.
//
// A Backend (cpu/torch/operators_cpu.cpp, cuda/torch/operators_cuda.cpp) has these static functions:
//   readable              a weight in a type that the kernels read
//   check_values          refuses a step and codes whose values are out of range
//   memory, weights       memory for a result, for weights [chips * out, ...]
//   program               weights of `chips` chips from first_chip on, into such memory
//   program_many          the same for several layers
//   product               a forward in one pass; if none, this file multiplies
//   input_gradient        the same for the gradient with respect to x
//   convolution_backward  torch's
//   epilogue              in place on a result
#pragma once

#include "operators/crossbar.h"

namespace nft {

// Runs product(x of the chip, W_p of the chip) for every chip and stacks the results chip-major along dim 0.
template <class Backend, class Product>
Tensor for_each_chip(Crossbar& c, const Tensor& x, bool shared, bool channels_last, const Product& product) {
  const ScalarType dtype = x.scalar_type();
  const int64_t chips = c.chips(), rows = rows_per_chip(c.op, x, chips, shared);
  Tensor programmed = Backend::weights(c, 1, dtype, channels_last);
  std::optional<Tensor> all;
  for (int64_t chip = 0; chip < chips; ++chip) {
    Backend::program(c, programmed, chip, 1);
    Tensor y = aten::cast(product(rows_of(x, chip, rows, shared, chips), programmed), dtype);
    if (y.dim() == 4) y = aten::in_format(y, channels_last);
    if (chips == 1) return y;
    if (!all) {
      Ints sizes = sizes_of(y);
      sizes[0] = for_all_chips(c.op, chips, sizes[0]);
      all = aten::empty(sizes, dtype, y, channels_last);
    }
    Tensor slot = torch::stable::narrow(*all, 0, chip * rows, rows);
    torch::stable::copy_(slot, y);
  }
  return *all;
}

}  // namespace nft
