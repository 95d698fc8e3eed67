// The one-pass kernel of the input's gradient (csrc/cuda/one_pass/gradient.h) on the host,
// as test_one_pass.cpp does the forward's: the kernel's own tile loop, every thread of every
// thread block, against the gradient by its definition in double precision, which scatters
// each of the result's pixels to what it saw, with the weights that cuda::program writes.
#include <string>
#include <vector>

#include "tests/cuda/one_pass_layer.h"

using namespace nft::generic;
using nft::cuda::OnePassProduct;
using nft::cuda::OutType;
using nft_test::expect;
using nft_test::kTypes;
using nft_test::Memory;
using nft_test::number_at;
using nft_test::shape;
using nft_test::Sum;
using nft_test::Words;

namespace {

struct Options : nft_test::Noise {
  bool wide = false, reversed = false;
  int x = 0, y = 0, x_format = 0, y_format = 0;
};

// The gradient's product of a layer: what it gathers is the result's, what it gives is the input's.
OnePassProduct channels_last(const OnePassProduct& layer) {
  OnePassProduct f = layer;
  f.channels = layer.rows, f.height = layer.out[0], f.width = layer.out[1];
  f.rows = layer.channels, f.out[0] = layer.height, f.out[1] = layer.width;
  return f;
}

// grad_x [chips, images, channels, height, width] of the layer.
std::vector<Sum> definition(const OnePassProduct& layer, Memory& grad, const std::vector<double>& w, int64_t chips) {
  const int channels = layer.channels / layer.groups;
  std::vector<Sum> sums((size_t)(chips * layer.images * layer.channels * layer.height * layer.width), Sum{0, 0});
  grad.each([&](int64_t s, int64_t b, int64_t r, int64_t oy, int64_t ox, const char* at) {
    const double g = number_at(grad.type, at);
    const int64_t first = r / (layer.rows / layer.groups) * channels;
    for (int c = 0; c < channels; ++c)
      for (int ky = 0; ky < layer.kernel[0]; ++ky)
        for (int kx = 0; kx < layer.kernel[1]; ++kx) {
          const int64_t y = oy * layer.stride[0] - layer.padding[0] + ky * layer.dilation[0];
          const int64_t x = ox * layer.stride[1] - layer.padding[1] + kx * layer.dilation[1];
          if (y < 0 || y >= layer.height || x < 0 || x >= layer.width) continue;
          const int64_t element = ((r * channels + c) * layer.kernel[0] + ky) * layer.kernel[1] + kx;
          const int64_t to =
              (((s * layer.images + b) * layer.channels + first + c) * layer.height + y) * layer.width + x;
          sums[(size_t)to].add(g * w[(size_t)(s * layer.program.n + element)]);
        }
  });
  return sums;
}

std::string name_of(const OnePassProduct& f, const Options& o) {
  char name[300];
  snprintf(
      name, sizeof name,
      "%d images %dx%dx%d, %d rows, %d groups, kernel %dx%d, stride %d %d, padding %d %d, dilation %d %d, %s, path %d, "
      "grad type %d format %d, result type %d format %d, %d chips, %d parts%s",
      (int)f.images, f.channels, f.height, f.width, f.rows, f.groups, f.kernel[0], f.kernel[1], f.stride[0],
      f.stride[1], f.padding[0], f.padding[1], f.dilation[0], f.dilation[1], o.wide ? "wide" : "narrow", o.path, o.x,
      o.x_format, o.y, o.y_format, (int)o.chips, o.parts, o.codes ? ", codes" : "");
  return name;
}

void check(OnePassProduct layer, const Options& o) {
  Words words(1 + (uint64_t)(layer.images * 131 + layer.channels * 17 + layer.height * 5 + layer.width));
  const int64_t weights = (int64_t)layer.rows * (layer.channels / layer.groups) * layer.kernel[0] * layer.kernel[1];
  const nft_test::Layer noise(o, weights, words);
  layer.program = noise.program;
  OnePassProduct f = channels_last(layer);
  f.x_type = kTypes[o.x], f.y_type = kTypes[o.y];
  Memory grad(f.x_type, o.chips, false, f.images, f.channels, f.height, f.width, o.x_format);
  Memory grad_x(f.y_type, o.chips, false, f.images, f.rows, f.out[0], f.out[1], o.y_format);
  grad.fill(words);
  f.x = grad.first, f.x_strides = grad.strides, f.y = grad_x.first, f.y_strides = grad_x.strides;
  expect(gradient_coordinates_fit(f), "%s: fits", name_of(layer, o).c_str());

  nft_test::with_tile(f.x_type, o.wide, o.path, [&](auto tile, auto path) {
    typedef decltype(tile) T;
    nft_test::run_tiles<T, path>(f, gradient_sizes_of(f, T::kInner), o.constant, o.reversed, o.parts);
  });
  const std::vector<Sum> sums = definition(layer, grad, nft_test::programmed_weights(f.program, f.x_type), o.chips);
  const std::string name = name_of(layer, o);
  size_t n = 0;
  grad_x.each([&](int64_t s, int64_t b, int64_t c, int64_t y, int64_t x, char* at) {
    const Sum& sum = sums[n++];
    const double got = number_at(f.y_type, at);
    const double most = (sum.magnitude + 1) * 0x1p-19 + fabs(sum.value) * nft_test::kRounding[o.y];
    expect(isnan(o.step) ? isnan(got) : fabs(got - sum.value) <= most,
           "%s: chip %d image %d channel %d at %d %d: %.9g, not %.9g", name.c_str(), (int)s, (int)b, (int)c, (int)y,
           (int)x, got, sum.value);
    memset(at, 0xff, nft_test::size_of(f.y_type));
  });
  expect(is_poison(grad_x), "%s: writes outside its result", name.c_str());
}

Options rotated(int n) {
  Options o;
  o.x = n % 3, o.y = n / 2 % 3, o.path = n / 3 % 5 == 0 ? kPathOff : n / 3 % 5 == 1 ? kPathDevice : kPathFast;
  o.x_format = n / 5 % 3, o.y_format = n / 7 % 3;
  o.parts = 1 + n / 3 % 4;
  o.codes = n / 11 % 2, o.reversed = n % 2, o.chips = 1 + n / 4 % 3;
  return o;
}

void every_small_shape() {
  nft_test::each_small_shape({1, 2, 5}, {1, 4, 5}, [](const OnePassProduct& f, int n) {
    Options o = rotated(n);
    o.wide = n % 16 == 0;
    check(f, o);
  });
}

// Strides of three and more, kernels apart from them in size, so that remainders of all kinds meet.
void long_strides() {
  int n = 0;
  for (int sy : {1, 3, 4})
    for (int sx : {2, 3, 5})
      for (int dilation : {1, 2, 3}) {
        OnePassProduct f = shape(2, 5, 11, 13, 6, 1, 3, 0, 2, 0);
        f.stride[0] = sy, f.stride[1] = sx, f.dilation[0] = dilation, f.dilation[1] = 4 - dilation;
        f.out[0] = (11 + 2 * f.padding[0] - f.dilation[0] * 2 - 1) / sy + 1;
        f.out[1] = (13 + 2 * f.padding[1] - f.dilation[1] * 2 - 1) / sx + 1;
        check(f, rotated(++n));
      }
}

// Several tiles down and across, several steps; both tile shapes; kernels of more taps than a step.
void larger_shapes() {
  int n = 0;
  OnePassProduct large = shape(1, 9, 12, 11, 5, 1, 7, 0, 3, 0), larger = shape(2, 18, 9, 12, 3, 2, 9, 2, 4, 0);
  large.kernel[1] = 7, large.out[1] = 11 + 2 * large.padding[1] - 6;
  larger.kernel[1] = 8, larger.out[1] = (12 + 2 * larger.padding[1] - 8) / 2 + 1;
  for (bool wide : {false, true})
    for (int x = 0; x < 3; ++x) {
      for (const OnePassProduct& f :
           {shape(2, 33, 9, 8, 12, 2, 3, 0, 1, 0), shape(3, 65, 7, 9, 7, 1, 3, 0, 1, 0), large, larger,
            shape(1, 70, 13, 12, 3, 1, 3, 3, 1, 0), shape(2, 66, 9, 9, 72, 1, 1, 3, 0, 0)}) {
        Options o = rotated(++n);
        o.wide = wide, o.x = x, o.chips = 2;
        check(f, o);
      }
    }
}

void linear_layers() {
  int n = 0;
  for (int images : {1, 2, 31, 32, 33, 130})
    for (int outputs : {1, 3, 8, 64, 70, 136})
      for (int inputs : {1, 16, 17, 65}) {
        Options o = rotated(++n);
        o.wide = n % 4 == 0, o.chips = 1 + n % 2;
        check(shape(images, inputs, 1, 1, outputs, 1, 1, 0, 0, 0), o);
      }
}

void every_option() {
  const OnePassProduct f = shape(3, 5, 5, 6, 9, 2, 3, 3, 1, 0);
  Options o;
  for (int n = 0; n < 2 * 3 * 5 * 2; ++n) {  // tile, grad, noise, codes
    o = {};
    o.wide = n % 2, o.x = n / 2 % 3, o.codes = n / 30;
    const int noise = n / 6 % 5;
    o.path = noise == 0 ? kPathOff : noise <= 2 ? kPathFast : kPathDevice;
    o.constant = noise == 1;
    o.limits = noise == 4;
    o.mapping = noise == 4 ? kMappingDifferential : kMappingSign;
    o.weight_bits = o.wide && noise < 3 ? 16 : 8;  // codes of four and of two bytes
    o.step = 1.0f / (float)(1 << o.weight_bits);
    check(f, o);
  }
  for (int n = 0; n < 2 * 3 * 3 * 3; ++n) {
    o = {};
    o.wide = n % 2, o.x = n / 2 % 3, o.x_format = n / 6 % 3, o.y_format = n / 18;
    check(f, o);
  }
  for (float step : {0.0f, NAN})
    for (int n = 0; n < 2 * 3 * 3; ++n) {
      o = {};
      o.wide = n % 2, o.x = n / 2 % 3, o.path = n / 6, o.step = step;
      check(f, o);
    }
}

}  // namespace

int main() {
  every_option();
  every_small_shape();
  long_strides();
  larger_shapes();
  linear_layers();
  return nft_test::exit_code("gradient");
}
