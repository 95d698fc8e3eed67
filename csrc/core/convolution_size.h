// The size of a convolution's output along one axis: how many places its kernel takes on the padded input.
#pragma once

#include "core/macros.h"

namespace nft {
namespace NFT_ISA {

// Zero where the padded input is smaller than the dilated kernel.
NFT_FN int64_t convolution_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace NFT_ISA
}  // namespace nft
