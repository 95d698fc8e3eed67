// The 8-bit products of the fused CUDA kernel on the host, as test_cuda_fused.cpp runs the others: the tile loop with mma.sync
// on integers, generated and stored weights, and the input's way to 8 bits. Sums are exact, so every result is its definition
// bit for bit, however tiles are cut.
#include <string>
#include <vector>

#include "../cuda/images.h"
#include "fused_layer.h"

using namespace nft::generic;
using nft::cuda::Fused;
using nft::cuda::OutType;
using nft_test::expect;
using nft_test::kFormats;
using nft_test::kTypes;
using nft_test::Memory;
using nft_test::shape;
using nft_test::Words;

namespace {

struct Options : nft_test::Noise {
  bool wide = false, shared = true, reversed = false, stored = false;
  int y = 0, x_format = 0, y_format = 0, epilogue = 0;
};

template <int kPath>
std::vector<int8_t> stored_weights(nft::cuda::Program p) {
  std::vector<int8_t> out((size_t)(p.n * p.chips));
  p.out = out.data();
  for (int64_t block = 0; block < blocks_of(p.n); ++block)
    program_block<kPath, OutType::kInt8>(p, {p.table, table_levels(p), false}, block, 0, 1);
  return out;
}

std::vector<int8_t> stored_weights(const nft::cuda::Program& p) {
  if (p.path == kPathFast) return stored_weights<kPathFast>(p);
  return p.path == kPathDevice ? stored_weights<kPathDevice>(p) : stored_weights<kPathOff>(p);
}

// The epilogue's definition, every operation rounded.
float finished_by_hand(const std::vector<float>* row, int which, size_t r, float value, float residual) {
  if (which & 1) value += row[0][r];
  if (which & 2) value *= row[1][r];
  if (which & 4) value += row[2][r];
  if (which & 8) value += residual;
  return which & 16 && value < 0 ? 0.0f : value;
}

void check(Fused f, const Options& o) {
  Words words(1 + (uint64_t)(f.images * 131 + f.channels * 17 + f.height * 5 + f.width));
  const nft_test::Layer layer(o, (int64_t)f.rows * (f.channels / f.groups) * f.kernel[0] * f.kernel[1], words);
  const float weight_scale = o.step > 0 ? 1.3f / 127 : o.step;
  f.program = layer.program;
  f.program.scale = &weight_scale;
  f.x_type = OutType::kInt8, f.y_type = kTypes[o.y];
  Memory x(f.x_type, o.chips, o.shared, f.images, f.channels, f.height, f.width, o.x_format);
  Memory y(f.y_type, o.chips, false, f.images, f.rows, f.out[0], f.out[1], o.y_format);
  Memory residual(f.y_type, o.chips, false, f.images, f.rows, f.out[0], f.out[1], (o.y_format + 1) % kFormats);
  x.fill(words);
  residual.fill(words);
  std::vector<float> row[3], largest;
  for (auto& v : row)
    for (int r = 0; r < f.rows; ++r) v.push_back(words.signed_unit());
  for (int64_t i = 0; i < f.images * (o.shared ? 1 : o.chips); ++i) largest.push_back(fabsf(words.signed_unit()));
  f.x = x.first, f.x_strides = x.strides, f.y = y.first, f.y_strides = y.strides;
  f.x_largest = largest.data(), f.x_largest_chip = o.shared ? 0 : f.images;
  f.epilogue = {o.epilogue & 1 ? row[0].data() : nullptr, o.epilogue & 2 ? row[1].data() : nullptr,
                o.epilogue & 4 ? row[2].data() : nullptr, o.epilogue & 8 ? residual.first : nullptr, residual.strides,
                (o.epilogue & 16) != 0};
  std::vector<int8_t> bytes = stored_weights(f.program);
  const std::vector<double> w(bytes.begin(), bytes.end());
  if (o.stored) f.program.out = bytes.data();

  nft_test::with_tile(f.x_type, o.wide, o.stored ? (int)kPathStored : o.path, [&](auto tile, auto path) {
    nft_test::run_tiles<decltype(tile), path>(f, sizes_of(f), o.constant, o.reversed, o.parts);
  });
  char name[200];
  snprintf(name, sizeof name, "%d images %dx%dx%d, %d rows, %d groups, kernel %dx%d, %s, path %d%s, formats %d %d, y type %d, epilogue %d",
           (int)f.images, f.channels, f.height, f.width, f.rows, f.groups, f.kernel[0], f.kernel[1], o.wide ? "wide" : "narrow", o.path,
           o.stored ? " stored" : "", o.x_format, o.y_format, o.y, o.epilogue);
  y.each([&](int64_t s, int64_t b, int64_t r, int64_t oy, int64_t ox, char* at) {
    const double sum = nft_test::definition(f, w, s, b, (int)r, (int)oy, (int)ox).value;
    const float unit = weight_scale * (largest[(size_t)(s * f.x_largest_chip + b)] / 127);
    const float rest = o.epilogue & 8 ? (float)nft_test::number_at(f.y_type, residual.at(s, b, r, oy, ox)) : 0.0f;
    const float value = finished_by_hand(row, o.epilogue, (size_t)r, (float)sum * unit, rest);
    uint32_t bits = 0, got = 0;
    nft_test::write_number(f.y_type, &bits, value);
    memcpy(&got, at, nft_test::size_of(f.y_type));
    expect(isnan(o.step) ? isnan(nft_test::number_at(f.y_type, at)) : got == bits, "%s: chip %d image %d row %d at %d %d: %x, not %x", name,
           (int)s, (int)b, (int)r, (int)oy, (int)ox, got, bits);
    memset(at, 0xff, nft_test::size_of(f.y_type));
  });
  expect(nft_test::is_poison(y), "%s: writes outside its result", name);
}

// Options that change with every case, each at its own pace.
Options rotated(int n) {
  Options o;
  o.y = n / 2 % 3, o.path = n / 3 % 5 == 0 ? kPathOff : n / 3 % 5 == 1 ? kPathDevice : kPathFast;
  o.x_format = n / 5 % 3, o.y_format = n / 7 % 3, o.epilogue = n / 3 % 32;
  o.parts = 1 + n / 3 % 4, o.stored = n / 2 % 2;
  o.codes = n / 11 % 2, o.shared = n / 13 % 2, o.reversed = n % 2, o.chips = 1 + n / 4 % 3;
  return o;
}

void every_small_shape() {
  nft_test::each_small_shape({1, 5}, {1, 4, 5}, [](const Fused& f, int n) {
    Options o = rotated(n);
    o.wide = n % 16 == 0;
    check(f, o);
  });
}

void larger_shapes() {
  int n = 0;
  for (bool wide : {false, true})
    for (bool stored : {false, true})
      for (const Fused& f : {shape(2, 24, 9, 8, 33, 2, 3, 0, 1, 0), shape(3, 15, 7, 9, 65, 1, 3, 0, 1, 0),
                             shape(1, 33, 13, 12, 70, 1, 3, 0, 1, 0), shape(2, 144, 9, 9, 66, 1, 1, 3, 0, 0)}) {
        Options o = rotated(++n);
        o.wide = wide, o.stored = stored, o.chips = 2;
        check(f, o);
      }
  for (int images : {1, 31, 33, 130})
    for (int inputs : {1, 3, 16, 128, 129, 300})
      for (int rows : {1, 17, 65}) {
        Options o = rotated(++n);
        o.wide = n % 4 == 0, o.chips = 1 + n % 2;
        check(shape(images, inputs, 1, 1, rows, 1, 1, 0, 0, 0), o);
      }
}

void every_option() {
  const Fused f = shape(3, 5, 5, 6, 9, 2, 3, 0, 1, 0);
  Options o;
  for (int n = 0; n < 2 * 5 * 2 * 2 * 2; ++n) {  // tile, noise, codes, shared, stored
    o = {};
    const int noise = n / 2 % 5;
    o.wide = n % 2, o.codes = n / 10 % 2, o.shared = n / 20 % 2, o.stored = n / 40;
    o.path = noise == 0 ? kPathOff : noise <= 2 ? kPathFast : kPathDevice;
    o.constant = noise == 1, o.limits = noise == 4;
    o.mapping = noise == 4 ? kMappingDifferential : kMappingSign;
    o.weight_bits = o.wide && noise < 3 ? 16 : 8;
    o.step = 1.0f / (float)(1 << o.weight_bits);
    check(f, o);
  }
  for (int n = 0; n < 32 * 3; ++n) {
    o = {};
    o.epilogue = n % 32, o.y = n / 32;
    check(f, o);
  }
  for (float step : {0.0f, NAN})  // an all-zero layer gives zeros, one that is not finite NaN
    for (int n = 0; n < 2 * 3; ++n) {
      o = {};
      o.wide = n % 2, o.path = n / 2, o.epilogue = 1, o.step = step;
      check(f, o);
    }
}

// As long a sum as 32 bits hold, all products of one sign and as large as they can be.
void longest_sum() {
  typedef Tile<OutType::kInt8, false> T;
  const int inputs = (int)kMostInt8Inner;
  expect((int64_t)inputs * 127 * 127 <= 0x7fffffff && (int64_t)(inputs + 1) * 127 * 127 > 0x7fffffff, "the longest sum");
  std::vector<int8_t> x((size_t)inputs, 127), w((size_t)inputs, -127);
  const float one = 1, largest = 127;
  float y = NAN;
  Fused f = shape(1, inputs, 1, 1, 1, 1, 1, 0, 0, 0);
  f.program.n = inputs, f.program.chips = 1, f.program.out = w.data(), f.program.scale = &one, f.program.weight_bits = 8;
  f.x_type = OutType::kInt8, f.x = x.data(), f.x_strides = {0, inputs, 1, 0, 0}, f.x_largest = &largest;
  f.y_type = OutType::kFloat32, f.y = &y;
  for (int parts : {1, 7}) {
    nft_test::run_tiles<T, kPathStored>(f, sizes_of(f), false, false, parts);
    expect(y == (float)(-127.0 * 127 * inputs), "%d parts: %.9g", parts, y);
  }
}

// ---- the input's way to 8 bits

template <OutType kX>
void images(int64_t count, int64_t size, int gap) {
  typedef typename Stored<kX>::Type Element;
  Words words((uint64_t)(size + 10 * count));
  std::vector<Element> x((size_t)(count * size + gap));
  std::vector<int8_t> rounded((size_t)(count * size + gap + 1), 55);
  std::vector<float> largest((size_t)count, 0.0f);
  const nft::cuda::Images m = {x.data() + gap, kX, count, size, largest.data(), rounded.data() + gap};
  for (auto& v : x) v = stored<kX>(words.signed_unit() * 3, 1);
  for (int64_t i = 0; i < count; ++i) {
    float most = 0;
    uint32_t found = 0;
    for (int64_t k = 0; k < size; ++k) most = fmaxf(most, fabsf(loaded<kX>(x[(size_t)(gap + i * size + k)])));
    for (int64_t quad = 0; quad < blocks_of(size); ++quad) {
      const uint32_t here = largest_of_four<kX>(m, i, quad);
      found = here > found ? here : found;
    }
    largest[(size_t)i] = float_of(found);
    expect(largest[(size_t)i] == most, "image %d of %d numbers: largest %g, not %g", (int)i, (int)size, largest[(size_t)i], most);
    for (int64_t quad = 0; quad < blocks_of(size); ++quad) round_four<kX>(m, i, quad);
    for (int64_t k = 0; k < size; ++k) {
      const double quotient = loaded<kX>(x[(size_t)(gap + i * size + k)]) / (most / 127);
      expect(rounded[(size_t)(gap + i * size + k)] == (int)nearbyint((float)quotient), "image %d, number %d", (int)i, (int)k);
    }
  }
  expect(rounded.back() == 55 && (gap == 0 || rounded[0] == 55), "nothing is written beside the images");
}

void images_that_are_not_finite() {
  float x[6] = {1, -3, NAN, 2, -INFINITY, 1}, largest[3];
  int8_t rounded[6];
  const nft::cuda::Images m = {x, OutType::kFloat32, 3, 2, largest, rounded};
  for (int i = 0; i < 3; ++i) {
    largest[i] = float_of(largest_of_four<OutType::kFloat32>(m, i, 0));
    round_four<OutType::kFloat32>(m, i, 0);
  }
  expect(largest[0] == 3 && isnan(largest[1]) && isinf(largest[2]), "NaN and infinity show in the largest");
  expect(rounded[0] == 42 && rounded[1] == -127, "their neighbours in the batch do not see them");
  for (int i = 2; i < 6; ++i) expect(rounded[i] == 0 && isnan(worth(0, mul(1.0f, image_unit(largest[i / 2])))), "NaN all over an image");
}

}  // namespace

int main() {
  every_option();
  every_small_shape();
  larger_shapes();
  longest_sum();
  for (int64_t size : {1, 3, 4, 17, 64})
    for (int gap : {0, 1, 4}) {
      images<OutType::kFloat32>(3, size, gap);
      images<OutType::kBFloat16>(3, size, gap);
      images<OutType::kFloat16>(3, size, gap);
    }
  images_that_are_not_finite();
  return nft_test::finish("cuda_int8");
}
