// The shape of a one-pass product and its index arithmetic: columns to pixels, inner elements to places under the
// kernel, tiles to chips, groups, rows and columns. No shared memory and no threads in here.
//
//   y[s, b, r, p] = epilogue(sum_k W_p[s, r, k] x[s, b, place of p under k]),   zeros outside the input
//
// as a product for each chip s and group: rows r (output channels of the group), columns (b, p) (all output pixels of
// all images of the chip), inner k = (channel of the group, kernel row, kernel column), the weight's row-major order. A
// linear layer is the case of one pixel.
#pragma once

#include "cuda/sampler/four_weights.h"

namespace nft {
namespace cuda {

// A tensor [chips, images, channels, height, width] in memory, in elements; chip = 0: every chip sees the same images.
struct Strides {
  int64_t chip, image, channel, y, x;
};

// What happens to a sum before it is stored, in this order. Null: skipped.
struct Epilogue {
  const float* bias;     // [rows]
  const float* scale;    // [rows], batch-norm in evaluation
  const float* shift;    // [rows]
  const void* residual;  // [chips, images, rows, out_y, out_x] of y's type
  Strides residual_strides;
  bool relu;
};

// Dense results in memory: y [outer, rows, inner], `count` in all.
struct Results {
  void* y;
  OutType type;
  int64_t count, rows, inner;
};

// Pairs are (y, x). On CUDA all pointers point to GPU memory.
struct OnePassProduct {
  Program program;  // n = rows * inner; `out` is not used, since the weights never reach memory
  int64_t images;   // per chip
  int channels, height, width;
  int rows, groups;  // output channels; both rows and channels are multiples of groups
  int kernel[2], stride[2], padding[2], dilation[2], out[2];
  OutType x_type, y_type;
  const void* x;
  void* y;
  Strides x_strides, y_strides;
  Epilogue epilogue;
};

}  // namespace cuda

namespace NFT_ISA {

// Sizes that follow from the above.
struct Sizes {
  int group_rows, group_channels, inner;
  int64_t pixels, columns;
  bool dense;  // inner neighbours are neighbours in memory: a kernel of one place, and channels last
};

NFT_FN Sizes sizes_of(const cuda::OnePassProduct& f) {
  Sizes s;
  s.group_rows = f.rows / f.groups;
  s.group_channels = f.channels / f.groups;
  s.inner = s.group_channels * f.kernel[0] * f.kernel[1];
  s.pixels = (int64_t)f.out[0] * f.out[1];
  s.columns = f.images * s.pixels;
  s.dense = f.kernel[0] * f.kernel[1] == 1 && f.x_strides.channel == 1;
  return s;
}

// A 32-bit coordinate far outside the input: kOutside plus any coordinate is negative, and so is twice kOutside.
constexpr int kOutside = -(1 << 30);

// Whether 32-bit coordinates and inner indices hold everything. Strides and sizes of whole tensors may be larger.
NFT_FN bool coordinates_fit(const cuda::OnePassProduct& f) {
  const int64_t most = 1 << 29;
  bool fit =
      f.rows < most && f.program.chips < most && (int64_t)(f.channels / f.groups) * f.kernel[0] * f.kernel[1] < most;
  for (int i = 0; i < 2; ++i) {
    const int64_t reach = (int64_t)f.dilation[i] * (f.kernel[i] - 1), last = (int64_t)f.stride[i] * f.out[i];
    fit = fit && (i ? f.width : f.height) < most && f.padding[i] < most && reach < most && last < most;
  }
  return fit;
}

// An output pixel of one of a chip's images.
struct Pixel {
  int64_t image;
  int y, x;
};

NFT_FN Pixel pixel_of(const cuda::OnePassProduct& f, const Sizes& s, int64_t column) {
  if (s.pixels == 1) return {column, 0, 0};
  const int64_t image = column / s.pixels, pixel = column - image * s.pixels, y = pixel / f.out[1];
  return {image, (int)y, (int)(pixel - y * f.out[1])};
}

NFT_FN int64_t offset_of(const cuda::Strides& t, int64_t chip, const Pixel& p, int channel) {
  return chip * t.chip + p.image * t.image + channel * t.channel + p.y * t.y + p.x * t.x;
}

// The part of the result that a thread block computes: one tile's first row (within its group) and first column.
struct Place {
  int chip, group, row;
  int64_t column;
};

// How many tiles of rows x columns there are. Tiles with the same weights are neighbours.
struct Tiling {
  int tile_rows, tile_columns;
  int64_t down, across, count;
};

NFT_FN Tiling tiling_of(const cuda::OnePassProduct& f, const Sizes& s, int tile_rows, int tile_columns) {
  Tiling t = {tile_rows, tile_columns, (s.group_rows + tile_rows - 1) / tile_rows,
              (s.columns + tile_columns - 1) / tile_columns, 0};
  t.count = t.down * t.across * f.groups * f.program.chips;
  return t;
}

NFT_FN Place place_of(const cuda::OnePassProduct& f, const Tiling& t, int64_t tile) {
  const int64_t down = tile / t.across, group = down / t.down, chip = group / f.groups;
  Place p;
  p.column = (tile - down * t.across) * t.tile_columns;
  p.row = (int)(down - group * t.down) * t.tile_rows;
  p.group = (int)(group - chip * f.groups);
  p.chip = (int)chip;
  return p;
}

// The top left input element that a column sees: its coordinates (negative in the padding), and its place in x in the
// group's first channel. A column past the last is far outside.
struct alignas(16) Column {
  int64_t start;
  int y, x;
};

NFT_FN Column column_of(const cuda::OnePassProduct& f, const Sizes& s, const Place& place, int64_t column) {
  if (column >= s.columns) return {0, kOutside, kOutside};
  Pixel p = pixel_of(f, s, column);
  p.y = p.y * f.stride[0] - f.padding[0];
  p.x = p.x * f.stride[1] - f.padding[1];
  return {offset_of(f.x_strides, place.chip, p, place.group * s.group_channels), p.y, p.x};
}

// From a column's first element to the one that inner element k multiplies. A k past the last is far outside.
struct alignas(16) Tap {
  int64_t offset;
  int y, x;
};

NFT_FN Tap tap_of(const cuda::OnePassProduct& f, const Sizes& s, int k) {
  if (k >= s.inner) return {0, kOutside, kOutside};
  const int above = k / f.kernel[1], channel = above / f.kernel[0];
  Tap tap;
  tap.y = (above - channel * f.kernel[0]) * f.dilation[0];
  tap.x = (k - above * f.kernel[1]) * f.dilation[1];
  tap.offset = channel * f.x_strides.channel + tap.y * f.x_strides.y + tap.x * f.x_strides.x;
  return tap;
}

NFT_FN bool is_inside(const cuda::OnePassProduct& f, const Column& c, const Tap& t) {
  return (uint32_t)(c.y + t.y) < (uint32_t)f.height && (uint32_t)(c.x + t.x) < (uint32_t)f.width;
}

}  // namespace NFT_ISA
}  // namespace nft
