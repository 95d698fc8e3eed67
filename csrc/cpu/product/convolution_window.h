// The index arithmetic of a convolution as rows of weights times
// columns of a padded input (multiply.h). No memory is touched.
#pragma once

#include <stdint.h>

#include <vector>

namespace nft {

// Which columns are neighbours in a vector, and the memory they are read from.
enum class Order {
  kPixels,  // output pixels of one image, from the padded input [image][channel][height][width]
  kImages,  // images of a single pixel (linear layers), from the transposed input [channel][image]
  kPanels,  // output pixels of all images in turn, gathered into panels first
};

// Sizes of one convolution; `images` per chip.
struct Window {
  int64_t images, channels, height, width;  // the input
  int64_t rows, groups;                     // output channels
  int64_t kernel[2], stride[2], padding[2], dilation[2], out[2];

  int64_t padded(int i) const { return (i ? width : height) + 2 * padding[i]; }
  int64_t plane() const { return padded(0) * padded(1); }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_rows() const { return rows / groups; }
  int64_t inner() const { return group_channels() * kernel[0] * kernel[1]; }
  int64_t pixels() const { return out[0] * out[1]; }
  int64_t columns() const { return images * pixels(); }

  // The order that needs the least preparation for `lanes` columns per vector.
  Order order(int lanes) const {
    const bool rows_fit = stride[1] == 1 && out[1] % lanes == 0;
    const bool planes_fit = stride[0] == 1 && stride[1] == 1 && out[1] == padded(1) && pixels() % lanes == 0;
    if (rows_fit || planes_fit) return Order::kPixels;
    return images % lanes == 0 && height * width == 1 && pixels() == 1 && plane() == 1 ? Order::kImages
                                                                                       : Order::kPanels;
  }
};

// The layout of the padded input, in elements. `copies` counts its images (of all chips, if each sees its own).
struct Places {
  Window w;
  bool images_last;  // Order::kImages: an image is one pixel
  int64_t copies;

  int64_t unit() const { return images_last ? copies : 1; }
  int64_t image() const { return images_last ? 1 : w.channels * w.plane(); }
  int64_t channel() const { return w.plane() * unit(); }
  int64_t size() const { return copies * w.channels * w.plane(); }

  // f(column, start, result) for every column: its first element under the kernel (in the first group), and its
  // result's place among one chip's results, without its row's offset.
  template <class F>
  void each_column(bool channels_last, const F& f) const {
    const int64_t step_y = w.stride[0] * w.padded(1) * unit(), step_x = w.stride[1] * unit();
    const int64_t image_result = w.rows * w.pixels(), pixel_result = channels_last ? w.rows : 1;
    int64_t column = 0;
    for (int64_t n = 0; n < w.images; ++n)
      for (int64_t y = 0; y < w.out[0]; ++y)
        for (int64_t x = 0; x < w.out[1]; ++x)
          f(column++, n * image() + y * step_y + x * step_x, n * image_result + (y * w.out[1] + x) * pixel_result);
  }

  // From a column's start to its element k = (channel, kernel row, kernel column).
  std::vector<int32_t> offsets() const {
    std::vector<int32_t> list;
    list.reserve((size_t)w.inner());
    for (int64_t c = 0; c < w.group_channels(); ++c)
      for (int64_t y = 0; y < w.kernel[0]; ++y)
        for (int64_t x = 0; x < w.kernel[1]; ++x)
          list.push_back((int32_t)(c * channel() + (y * w.dilation[0] * w.padded(1) + x * w.dilation[1]) * unit()));
    return list;
  }
};

}  // namespace nft
