// The one-pass kernel's own tile loop (csrc/cuda/one_pass/tile_loop.h) on the host: every thread of every thread block,
// phase by phase, with mma.sync emulated from the instruction's definition; against a plain convolution in double
// precision with the weights that cuda::program writes. Inputs lie between NaN, so a read outside shows; results lie
// between poison, so a write outside shows.
#include <string>
#include <vector>

#include "tests/cuda/one_pass_layer.h"

using namespace nft::generic;
using nft::cuda::OnePassProduct;
using nft::cuda::OutType;
using nft_test::definition;
using nft_test::expect;
using nft_test::kFormats;
using nft_test::kTypes;
using nft_test::Memory;
using nft_test::number_at;
using nft_test::shape;
using nft_test::size_of;
using nft_test::Sum;
using nft_test::Words;

namespace {

// ---- cases

struct Options : nft_test::Noise {
  bool wide = false, shared = true, reversed = false;
  int x = 0, y = 0, x_format = 0, y_format = 0, epilogue = 0;
};

std::string name_of(const OnePassProduct& f, const Options& o) {
  char name[300];
  snprintf(
      name, sizeof name,
      "%d images %dx%dx%d, %d rows, %d groups, kernel %dx%d, stride %d %d, padding %d %d, dilation %d %d, %s, path %d, "
      "x type %d format %d, y type %d format %d, epilogue %d, %d chips, %d parts%s%s",
      (int)f.images, f.channels, f.height, f.width, f.rows, f.groups, f.kernel[0], f.kernel[1], f.stride[0],
      f.stride[1], f.padding[0], f.padding[1], f.dilation[0], f.dilation[1], o.wide ? "wide" : "narrow", o.path, o.x,
      o.x_format, o.y, o.y_format, o.epilogue, (int)o.chips, o.parts, o.shared ? ", shared x" : "",
      o.codes ? ", codes" : "");
  return name;
}

// Fills in everything but the shape, runs the loop, compares each result and then what lies around them.
void check(OnePassProduct f, const Options& o) {
  Words words(1 + (uint64_t)(f.images * 131 + f.channels * 17 + f.height * 5 + f.width));
  const nft_test::Layer layer(o, (int64_t)f.rows * (f.channels / f.groups) * f.kernel[0] * f.kernel[1], words);
  f.program = layer.program;
  f.x_type = kTypes[o.x], f.y_type = kTypes[o.y];
  Memory x(f.x_type, o.chips, o.shared, f.images, f.channels, f.height, f.width, o.x_format);
  Memory y(f.y_type, o.chips, false, f.images, f.rows, f.out[0], f.out[1], o.y_format);
  Memory residual(f.y_type, o.chips, false, f.images, f.rows, f.out[0], f.out[1], (o.y_format + 1) % kFormats);
  x.fill(words);
  residual.fill(words);
  std::vector<float> row[3];
  for (auto& v : row)
    for (int r = 0; r < f.rows; ++r) v.push_back(words.signed_unit());
  f.x = x.first, f.x_strides = x.strides, f.y = y.first, f.y_strides = y.strides;
  f.epilogue = {o.epilogue & 1 ? row[0].data() : nullptr,
                o.epilogue & 2 ? row[1].data() : nullptr,
                o.epilogue & 4 ? row[2].data() : nullptr,
                o.epilogue & 8 ? residual.first : nullptr,
                residual.strides,
                (o.epilogue & 16) != 0};

  nft_test::with_tile(f.x_type, o.wide, o.path, [&](auto tile, auto path) {
    nft_test::run_tiles<decltype(tile), path>(f, sizes_of(f), o.constant, o.reversed, o.parts);
  });
  const std::vector<double> w = nft_test::programmed_weights(f.program, f.x_type);
  const std::string name = name_of(f, o);
  y.each([&](int64_t s, int64_t b, int64_t r, int64_t oy, int64_t ox, char* at) {
    Sum sum = definition(f, w, s, b, (int)r, (int)oy, (int)ox);
    const size_t i = (size_t)r;
    if (f.epilogue.bias) sum.value += row[0][i];
    if (f.epilogue.scale) sum.value *= row[1][i];
    if (f.epilogue.shift) sum.value += row[2][i];
    if (f.epilogue.residual) sum.value += number_at(f.y_type, residual.at(s, b, r, oy, ox));
    if (f.epilogue.relu && sum.value < 0) sum.value = 0;
    const double got = number_at(f.y_type, at);
    const double most = (sum.magnitude + 1) * 0x1p-19 + fabs(sum.value) * nft_test::kRounding[o.y];
    expect(isnan(o.step) ? isnan(got) : fabs(got - sum.value) <= most,
           "%s: chip %d image %d row %d at %d %d: %.9g, not %.9g", name.c_str(), (int)s, (int)b, (int)r, (int)oy,
           (int)ox, got, sum.value);
    memset(at, 0xff, size_of(f.y_type));
  });
  expect(is_poison(y), "%s: writes outside its result", name.c_str());
}

// Options that change with every case, each at its own pace.
Options rotated(int n) {
  Options o;
  o.x = n % 3, o.y = n / 2 % 3, o.path = n / 3 % 5 == 0 ? kPathOff : n / 3 % 5 == 1 ? kPathDevice : kPathFast;
  o.x_format = n / 5 % 3, o.y_format = n / 7 % 3, o.epilogue = n / 3 % 32;
  o.parts = 1 + n / 3 % 4;
  o.codes = n / 11 % 2, o.shared = n / 13 % 2, o.reversed = n % 2, o.chips = 1 + n / 4 % 3;
  return o;
}

void every_small_shape() {
  nft_test::each_small_shape({1, 2, 5}, {1, 4, 5}, [](const OnePassProduct& f, int n) {
    Options o = rotated(n);
    o.wide = n % 16 == 0;
    check(f, o);
  });
}

// Several tiles down and across, several steps; both tile shapes.
void larger_shapes() {
  int n = 0;
  for (bool wide : {false, true})
    for (int x = 0; x < 3; ++x) {
      for (const OnePassProduct& f : {shape(2, 12, 9, 8, 33, 2, 3, 0, 1, 0), shape(3, 7, 7, 9, 65, 1, 3, 0, 1, 0),
                                      shape(1, 3, 13, 12, 70, 1, 3, 0, 1, 0), shape(2, 72, 9, 9, 66, 1, 1, 3, 0, 0)}) {
        Options o = rotated(++n);
        o.wide = wide, o.x = x, o.chips = 2;
        check(f, o);
      }
    }
}

void linear_layers() {
  int n = 0;
  for (int images : {1, 2, 31, 32, 33, 130})
    for (int inputs : {1, 3, 8, 64, 70, 136})
      for (int rows : {1, 16, 17, 65}) {
        Options o = rotated(++n);
        o.wide = n % 4 == 0, o.chips = 1 + n % 2;
        check(shape(images, inputs, 1, 1, rows, 1, 1, 0, 0, 0), o);
      }
}

// float32 products are as good as float32's own sums, however
// many there are and however they are split among thread blocks.
template <bool kWide>
void long_sums() {
  typedef Tile<OutType::kFloat32, kWide> T;
  for (int parts : {1, 5})
    for (int inputs : {512, 4096}) {
      nft_test::Noise o;
      o.chips = 1;
      Words words((uint64_t)inputs);
      const nft_test::Layer layer(o, (int64_t)T::kRows * inputs, words);
      OnePassProduct f = shape(T::kColumns, inputs, 1, 1, T::kRows, 1, 1, 0, 0, 0);
      f.program = layer.program, f.x_type = f.y_type = OutType::kFloat32;
      Memory x(f.x_type, 1, true, f.images, inputs, 1, 1, nft_test::kContiguous);
      Memory y(f.y_type, 1, false, f.images, f.rows, 1, 1, nft_test::kContiguous);
      x.fill(words);
      f.x = x.first, f.x_strides = x.strides, f.y = y.first, f.y_strides = y.strides;
      nft_test::run_tiles<T, kPathFast>(f, sizes_of(f), false, false, parts);
      const std::vector<double> w = nft_test::programmed_weights(f.program, f.x_type);
      double error = 0, own = 0, largest = 0;
      y.each([&](int64_t, int64_t b, int64_t r, int64_t, int64_t, char* at) {
        const Sum sum = definition(f, w, 0, b, (int)r, 0, 0);
        float plain = 0;
        for (int k = 0; k < inputs; ++k)
          plain += (float)w[(size_t)(r * inputs + k)] * (float)number_at(f.x_type, x.at(0, b, k, 0, 0));
        error = fmax(error, fabs(number_at(f.y_type, at) - sum.value));
        own = fmax(own, fabs(plain - sum.value));
        largest = fmax(largest, fabs(sum.value));
      });
      expect(error <= own + 4 * 0x1p-23 * largest,
             "%d inputs, %d parts: %.3g, plain float32's error is %.3g, the largest result %.3g", inputs, parts, error,
             own, largest);
    }
}

void every_option() {
  const OnePassProduct f = shape(3, 5, 5, 6, 9, 2, 3, 0, 1, 0);
  Options o;
  for (int n = 0; n < 2 * 3 * 5 * 2 * 2; ++n) {  // tile, x, noise, codes, shared
    o = {};
    o.wide = n % 2, o.x = n / 2 % 3, o.codes = n / 30 % 2, o.shared = n / 60;
    const int noise = n / 6 % 5;
    o.path = noise == 0 ? kPathOff : noise <= 2 ? kPathFast : kPathDevice;
    o.constant = noise == 1;
    o.limits = noise == 4;
    o.mapping = noise == 4 ? kMappingDifferential : kMappingSign;
    o.weight_bits = o.wide && noise < 3 ? 16 : 8;  // codes of four and of two bytes
    o.step = 1.0f / (float)(1 << o.weight_bits);
    check(f, o);
  }
  for (int n = 0; n < 32 * 3; ++n) {
    o = {};
    o.epilogue = n % 32, o.y = n / 32;
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
      o.wide = n % 2, o.x = n / 2 % 3, o.path = n / 6, o.epilogue = 1, o.step = step;
      check(f, o);
    }
}

// The pass over results in memory, one thread per result: the
// epilogue's definition, and nothing around the results touched.
template <OutType kY>
void results_in_memory(int parts, int64_t outer, int rows, int64_t inner) {
  const int64_t n = outer * rows * inner;
  Words words((uint64_t)(parts + 100 * n));
  Memory y(kY, 1, false, outer, rows, 1, inner, nft_test::kContiguous);
  Memory residual(kY, 1, false, outer, rows, 1, inner, nft_test::kContiguous);
  y.fill(words);
  residual.fill(words);
  std::vector<float> row[3];
  for (auto& r : row)
    for (int i = 0; i < rows; ++i) r.push_back(words.signed_unit());
  nft::cuda::Epilogue e = {};
  e.bias = parts & 1 ? row[0].data() : nullptr, e.scale = parts & 2 ? row[1].data() : nullptr;
  e.shift = parts & 4 ? row[2].data() : nullptr, e.residual = parts & 8 ? residual.first : nullptr, e.relu = parts & 16;
  const Memory before = y;
  const nft::cuda::Results r = {y.first, kY, n, rows, inner};
  for (int64_t at = 0; at < n; ++at) epilogue_of_result<kY>(r, e, at);
  const ptrdiff_t shift = y.first - (char*)y.words.data();
  y.each([&](int64_t, int64_t b, int64_t c, int64_t, int64_t x, char* now) {
    const size_t place = (size_t)(now - y.first);
    float want = (float)number_at(kY, (const char*)before.words.data() + shift + place);
    if (e.bias) want += row[0][(size_t)c];
    if (e.scale) want *= row[1][(size_t)c];
    if (e.shift) want += row[2][(size_t)c];
    if (e.residual) want += (float)number_at(kY, residual.first + place);
    if (e.relu && want < 0) want = 0;
    float rounded = want;
    if (kY != OutType::kFloat32) {
      uint16_t bits;
      nft_test::write_number(kY, &bits, want);
      rounded = (float)number_at(kY, &bits);
    }
    expect(number_at(kY, now) == rounded, "result in memory: type %d, epilogue %d, image %d, row %d of %d, %d of %d",
           (int)kY, parts, (int)b, (int)c, rows, (int)x, (int)inner);
    memcpy(now, (const char*)before.words.data() + shift + place, size_of(kY));
  });
  expect(y.words == before.words, "type %d, epilogue %d: memory around the results is left alone", (int)kY, parts);
}

void every_result_in_memory() {
  for (int parts = 0; parts < 32; ++parts)
    for (int rows : {1, 5, 16})
      for (int64_t inner : {1, 6, 16}) {
        results_in_memory<OutType::kFloat32>(parts, 3, rows, inner);
        results_in_memory<OutType::kBFloat16>(parts, 3, rows, inner);
        results_in_memory<OutType::kFloat16>(parts, 3, rows, inner);
      }
}

}  // namespace

int main() {
  every_option();
  every_small_shape();
  larger_shapes();
  linear_layers();
  long_sums<false>();
  long_sums<true>();
  every_result_in_memory();
  return nft_test::exit_code("one_pass");
}
