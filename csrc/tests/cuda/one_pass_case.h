// Tensors and shapes for the tests of the one-pass kernel:
// numbers of any storage type in poisoned memory of any strides.
#pragma once

#include <initializer_list>
#include <vector>

#include "core/convolution_size.h"
#include "cuda/one_pass/epilogue.h"
#include "tests/check.h"

namespace nft_test {

using namespace nft::generic;
using nft::cuda::OutType;

inline size_t size_of(OutType type) { return type == OutType::kFloat32 ? 4 : 2; }

inline double number_at(OutType type, const void* p) {
  float f;
  uint16_t h;
  memcpy(&f, p, type == OutType::kFloat32 ? sizeof f : 0);
  memcpy(&h, p, sizeof h);
  if (type == OutType::kFloat32) return f;
  return type == OutType::kBFloat16 ? loaded<OutType::kBFloat16>(h) : loaded<OutType::kFloat16>(h);
}

inline void write_number(OutType type, void* p, float value) {
  const uint16_t half = type == OutType::kBFloat16 ? to_bfloat16(value) : to_float16(value);
  memcpy(p, type == OutType::kFloat32 ? (const void*)&value : (const void*)&half, size_of(type));
}

enum Format { kContiguous, kChannelsLast, kGaps, kFormats };

// A tensor in poisoned memory (all bits set: NaN), with more of it on either side.
struct Memory {
  OutType type;
  std::vector<uint64_t> words;
  nft::cuda::Strides strides;
  int64_t sizes[5];
  char* first;

  Memory(OutType t, int64_t chips, bool shared, int64_t images, int64_t c, int64_t h, int64_t w, int format)
      : type(t), sizes{shared ? 1 : chips, images, c, h, w} {
    const int64_t gap = format == kGaps;
    if (format == kChannelsLast)
      strides = {images * c * h * w, c * h * w, 1, w * c, c};
    else
      strides.x = 1 + gap, strides.y = w * strides.x + gap, strides.channel = h * strides.y + gap,
      strides.image = c * strides.channel + gap, strides.chip = images * strides.image + gap;
    if (format == kChannelsLast || !gap) strides.chip = images * c * h * w;
    words.assign((size_t)(strides.chip * chips / 2 + 64), ~uint64_t(0));
    first = (char*)(((uintptr_t)words.data() + 64 + 15) / 16 * 16) + gap * size_of(t);
    if (shared) strides.chip = 0;
  }
  char* at(int64_t s, int64_t b, int64_t c, int64_t y, int64_t x) {
    const int64_t element = s * strides.chip + b * strides.image + c * strides.channel + y * strides.y + x * strides.x;
    return first + element * (int64_t)size_of(type);
  }
  template <class F>
  void each(const F& f) {
    for (int64_t s = 0; s < sizes[0]; ++s)
      for (int64_t b = 0; b < sizes[1]; ++b)
        for (int64_t c = 0; c < sizes[2]; ++c)
          for (int64_t y = 0; y < sizes[3]; ++y)
            for (int64_t x = 0; x < sizes[4]; ++x) f(s, b, c, y, x, at(s, b, c, y, x));
  }
  void fill(Words& words) {
    each([&](auto, auto, auto, auto, auto, char* to) { write_number(type, to, words.signed_unit()); });
  }
};

// Kernels are kernel x 3 (or 1 x 1), and strides and dilations number the pairs (1, 1), (2, 1), (1, 2), (2, 2): neither
// axis may stand in for the other.
inline nft::cuda::OnePassProduct shape(int64_t images, int channels, int height, int width, int rows, int groups,
                                       int kernel, int strides, int padding, int dilations) {
  nft::cuda::OnePassProduct f = {};
  f.images = images, f.channels = channels * groups, f.height = height, f.width = width;
  f.rows = rows * groups, f.groups = groups;
  for (int i = 0; i < 2; ++i) {
    f.kernel[i] = i && kernel > 1 ? 3 : kernel;
    f.stride[i] = 1 + (i ? strides / 2 : strides % 2);
    f.padding[i] = i ? (padding + 1) / 2 : padding;
    f.dilation[i] = 1 + (i ? dilations / 2 : dilations % 2);
    f.out[i] = (int)convolution_size(i ? width : height, f.kernel[i], f.stride[i], f.padding[i], f.dilation[i]);
  }
  return f;
}

// Every small convolution of these sizes that has a result: check(product, n), n counting from 1. Gives their number.
template <class Check>
int each_small_shape(std::initializer_list<int> heights, std::initializer_list<int> channels, const Check& check) {
  int n = 0;
  for (int images : {1, 3})
    for (int height : heights)
      for (int width : {1, 4, 7})
        for (int kernel : {1, 2, 3})
          for (int strides : {0, 1, 2, 3})
            for (int padding : {0, 1, 2})
              for (int dilations : {0, 1, 2})
                for (int groups : {1, 2})
                  for (int each : channels) {
                    if (kernel == 1 && dilations) continue;
                    const auto f =
                        shape(images, each, height, width, 1 + n % 18, groups, kernel, strides, padding, dilations);
                    if (f.out[0] > 0 && f.out[1] > 0) check(f, ++n);
                  }
  return n;
}

}  // namespace nft_test
