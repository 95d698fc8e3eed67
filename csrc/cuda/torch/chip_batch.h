// The products of several chips by torch: one launch programs the
// weights of all chips, and as few calls as torch allows multiply them.
#pragma once

#include "operators/conv2d.h"

namespace nft {

constexpr int64_t kMostBatchBytes = int64_t(1) << 29;  // of weights; more go chip by chip

inline bool fits_chip_batch(const Crossbar& c, const Tensor& x) {
  return c.chips() > 1 && x.size(0) > 0 &&
         (double)c.chips() * (double)c.weight.numel() * (x.scalar_type() == ScalarType::Float ? 4 : 2) <=
             kMostBatchBytes;
}

// x [B, in] or [S * B, in], all [S * out, in] -> [S * B, out], without bias.
inline Tensor linear_chip_batch(const Crossbar& c, const Tensor& x, const Tensor& all, bool shared) {
  const int64_t chips = c.chips(), out = c.weight.size(0), in = c.weight.size(1),
                rows = rows_per_chip(c.op, x, chips, shared);
  const Tensor weights = torch::stable::transpose(torch::stable::reshape(all, {chips, out, in}), 1, 2);
  const Tensor each = shared ? aten::expand(torch::stable::reshape(x, {1, rows, in}), {chips, rows, in})
                             : torch::stable::reshape(x, {chips, rows, in});
  return torch::stable::reshape(aten::bmm(each, weights), {chips * rows, out});
}

// x [B, C, H, W] or [S * B, C, H, W], all [S * out, C / groups, kh, kw]
// -> [S * B, out, oh, ow] in x's memory format, without bias.
inline Tensor conv2d_chip_batch(const Crossbar& c, const Tensor& x, const Tensor& all, const aten::Convolution& p,
                                bool shared) {
  const int64_t chips = c.chips(), out = c.weight.size(0), rows = rows_per_chip(c.op, x, chips, shared);
  Ints sizes = conv2d_result(c, x, p, shared);
  const Tensor y = aten::empty(sizes, x.scalar_type(), x, aten::is_channels_last(x));
  if (shared && p.groups == 1) {  // the chips are outputs of one larger layer
    const Tensor stacked = aten::convolution(x, all, std::nullopt, p);
    Tensor by_chip = torch::stable::reshape(y, {chips, rows, out, sizes[2], sizes[3]});
    torch::stable::copy_(by_chip, torch::stable::transpose(
                                      torch::stable::reshape(stacked, {rows, chips, out, sizes[2], sizes[3]}), 0, 1));
    return y;
  }
  for (int64_t chip = 0; chip < chips; ++chip) {
    Tensor weights = all, slot = y;
    weights = torch::stable::narrow(weights, 0, chip * out, out);
    slot = torch::stable::narrow(slot, 0, chip * rows, rows);
    torch::stable::copy_(slot, aten::convolution(rows_of(x, chip, rows, shared, chips), weights, std::nullopt, p));
  }
  return y;
}

}  // namespace nft
