// The 8-bit products whose inner index runs (place under the kernel, channel), csrc/cuda/fused/taps.h, on the host: from x in any
// memory format and weights as they are stored to results, which are their definition bit for bit, like those in the other order.
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

struct Options {
  bool wide = false, shared = true, reversed = false, channels_last = false;
  int x = 0, y = 0, y_format = 0, parts = 1;
  int64_t chips = 2;
};

// `count` bytes at a multiple of sixteen, with 16 bytes of poison before and after.
struct Bytes {
  std::vector<uint64_t> words;
  int8_t* first;
  int64_t count;

  explicit Bytes(int64_t n) : words((size_t)(n / 8 + 8), 0x8080808080808080u), count(n) {
    first = (int8_t*)(((uintptr_t)words.data() + 31) / 16 * 16);
  }
  bool is_whole() const {
    bool whole = true;
    for (int i = 1; i <= 16; ++i) whole = whole && first[-i] == -128 && first[count + i - 1] == -128;
    return whole;
  }
};

// What measure_images and round_images do on a device. Values' order in memory is that of `m`.
template <OutType kX>
void round_all(const nft::cuda::Images& m) {
  for (int64_t image = 0; image < m.images; ++image) {
    uint32_t largest = 0;
    for (int64_t quad = 0; quad < blocks_of(m.size); ++quad) {
      const uint32_t here = largest_of_four<kX>(m, image, quad);
      largest = here > largest ? here : largest;
    }
    m.largest[image] = float_of(largest);
    if (m.places)
      for (int64_t nth = 0; nth < m.size / kVector; ++nth) round_sixteen<kX>(m, image, nth);
    else
      for (int64_t quad = 0; quad < blocks_of(m.size); ++quad) round_four<kX>(m, image, quad);
  }
}

void round_all(const nft::cuda::Images& m) {
  if (m.type == OutType::kFloat32) round_all<OutType::kFloat32>(m);
  else if (m.type == OutType::kBFloat16) round_all<OutType::kBFloat16>(m);
  else round_all<OutType::kFloat16>(m);
}

std::string name_of(const Fused& f, const Options& o) {
  char name[200];
  snprintf(name, sizeof name, "%d images %dx%dx%d of type %d%s, %d rows, %d groups, kernel %dx%d, %s, %d parts, y type %d format %d",
           (int)f.images, f.channels, f.height, f.width, o.x, o.channels_last ? " channels-last" : "", f.rows, f.groups, f.kernel[0],
           f.kernel[1], o.wide ? "wide" : "narrow", o.parts, o.y, o.y_format);
  return name;
}

template <bool kWide>
void run(const Fused& f, const Options& o) {
  typedef Tile<OutType::kInt8, kWide> T;
  nft_test::run_tiles<T, kPathStored>(f, sizes_for<T, TapSizes>(f), false, o.reversed, o.parts);
}

void check(Fused f, const Options& o) {
  const std::string name = name_of(f, o);
  Words words(1 + (uint64_t)(f.images * 131 + f.channels * 17 + f.height * 5 + f.width));
  const int channels = f.channels / f.groups, taps = f.kernel[0] * f.kernel[1];
  const int64_t images = f.images * (o.shared ? 1 : o.chips), places = (int64_t)f.height * f.width, size = f.channels * places;
  const int64_t inner = (int64_t)channels * taps, n = f.rows * inner;

  // x, dense in one of two formats, to bytes with channels last.
  Memory x(kTypes[o.x], o.chips, o.shared, f.images, f.channels, f.height, f.width,
           o.channels_last ? nft_test::kChannelsLast : nft_test::kContiguous);
  x.fill(words);
  Bytes rounded(images * size);
  std::vector<float> largest((size_t)images);
  nft::cuda::Images m = {x.first, x.type, images, size, largest.data(), rounded.first};
  if (!o.channels_last) m.channels = f.channels, m.places = places;
  round_all(m);
  expect(rounded.is_whole(), "%s: rounding writes outside", name.c_str());
  f.x_type = OutType::kInt8, f.x = rounded.first;
  f.x_strides = {o.shared ? 0 : f.images * size, size, 1, (int64_t)f.width * f.channels, f.channels};
  f.x_largest = largest.data(), f.x_largest_chip = o.shared ? 0 : f.images;
  x.each([&](int64_t s, int64_t b, int64_t c, int64_t iy, int64_t ix, char* at) {
    const int64_t image = s * f.images + b;
    const int8_t expected = to_int8((float)nft_test::number_at(x.type, at), image_unit(largest[(size_t)image]));
    expect(rounded.first[image * size + (iy * f.width + ix) * f.channels + c] == expected, "%s: x of image %d, channel %d at %d %d",
           name.c_str(), (int)image, (int)c, (int)iy, (int)ix);
  });

  // Weights as they are stored, and turned.
  Bytes stored(o.chips * n), turned(o.chips * n);
  for (int64_t i = 0; i < o.chips * n; ++i) stored.first[i] = to_int8(words.signed_unit(), 1.0f / 127);
  for (int64_t i = 0; i < o.chips * n / kVector; ++i) turn_sixteen(stored.first, turned.first, i, channels, taps);
  expect(turned.is_whole(), "%s: turning writes outside", name.c_str());
  for (int64_t i = 0; i < o.chips * n; ++i) {
    const int64_t row = i / inner, channel = i % inner / taps, tap = i % taps;
    expect(turned.first[row * inner + tap * channels + channel] == stored.first[i], "%s: weight %d", name.c_str(), (int)i);
  }
  const float weight_unit = 1.3f / 127;
  f.program.n = n, f.program.chips = o.chips, f.program.scale = &weight_unit, f.program.weight_bits = 8;
  f.program.out = turned.first;

  Memory y(kTypes[o.y], o.chips, false, f.images, f.rows, f.out[0], f.out[1], o.y_format);
  std::vector<float> bias;
  for (int r = 0; r < f.rows; ++r) bias.push_back(words.signed_unit());
  f.y_type = y.type, f.y = y.first, f.y_strides = y.strides, f.epilogue.bias = bias.data(), f.by_tap = true;
  expect(goes_by_tap(f), "%s: taken", name.c_str());
  o.wide ? run<true>(f, o) : run<false>(f, o);
  const std::vector<double> w(stored.first, stored.first + stored.count);
  y.each([&](int64_t s, int64_t b, int64_t r, int64_t oy, int64_t ox, char* at) {
    const float sum = (float)nft_test::definition(f, w, s, b, (int)r, (int)oy, (int)ox).value;
    const float value = sum * (weight_unit * (largest[(size_t)(s * f.x_largest_chip + b)] / 127)) + bias[(size_t)r];
    uint32_t bits = 0, got = 0;
    nft_test::write_number(y.type, &bits, value);
    memcpy(&got, at, nft_test::size_of(y.type));
    expect(got == bits, "%s: chip %d image %d row %d at %d %d: %x, not %x", name.c_str(), (int)s, (int)b, (int)r, (int)oy, (int)ox,
           got, bits);
    memset(at, 0xff, nft_test::size_of(y.type));
  });
  expect(nft_test::is_poison(y), "%s: writes outside its result", name.c_str());
}

// Options that change with every case, each at its own pace.
Options rotated(int n) {
  Options o;
  o.channels_last = n / 2 % 2, o.x = n / 4 % 3, o.y = n / 5 % 3, o.y_format = n / 7 % kFormats, o.parts = 1 + n / 3 % 4;
  o.shared = n / 13 % 2, o.reversed = n % 2, o.chips = 1 + n / 4 % 3;
  return o;
}

void every_geometry() {
  const int n = nft_test::each_small_shape({1, 5}, {16, 48}, [](const Fused& f, int n) {
    Options o = rotated(n);
    o.wide = n % 8 == 0;
    check(f, o);
  });
  expect(n > 500, "%d cases", n);
}

// Both tiles, more of them than one in each direction, with whole and broken last steps.
void larger_shapes() {
  int n = 0;
  for (bool wide : {false, true})
    for (bool channels_last : {false, true})
      for (const Fused& f : {shape(2, 32, 9, 8, 33, 2, 3, 0, 1, 0), shape(3, 16, 7, 9, 65, 1, 3, 0, 1, 0),
                             shape(1, 80, 13, 12, 70, 1, 3, 0, 1, 0), shape(2, 144, 9, 9, 66, 1, 1, 3, 0, 0),
                             shape(1, 128, 12, 11, 130, 1, 3, 0, 1, 0), shape(150, 176, 1, 1, 17, 1, 1, 0, 0, 0)}) {
        Options o = rotated(++n);
        o.wide = wide, o.channels_last = channels_last, o.chips = 2, o.parts = 1 + n % 3;
        check(f, o);
      }
}

// Past the last place and the last row nothing is read, which no result would show: one of two factors is zero anyway.
template <bool kWide>
void what_lies_outside() {
  typedef Tile<OutType::kInt8, kWide> T;
  for (int channels : {16, 48, 80})
    for (int groups : {1, 2}) {
      Fused f = shape(1, channels, 9, 9, 5, groups, 3, 0, 1, 0);
      f.x_strides = {0, 81 * f.channels, 1, 9 * f.channels, f.channels};
      const TapSizes s = sizes_for<T, TapSizes>(f);
      Bytes weights(f.rows * s.inner), tile(T::kRows * T::kPitch);
      for (int64_t i = 0; i < weights.count; ++i) weights.first[i] = (int8_t)(1 + i % 127);
      f.program.n = weights.count, f.program.chips = 1, f.program.out = weights.first;
      for (int group = 0; group < groups; ++group)
        for (int step = 0; step < steps_of<T>(s); ++step) {
          Tap taps[T::kInner];
          for (int thread = 0; thread < T::kThreads; ++thread) {
            fill_taps<T>(f, s, step, thread, taps);
            copy_weights<T>(f.program, s, {0, group, 0, 0}, step, thread, tile.first);
          }
          for (int n = 0; n < T::kInner; ++n) {
            const int k = step * T::kInner + n;
            if (n % kVector == 0)
              expect(is_inside(f, {0, 4, 4}, taps[n]) == (k < s.inner), "%d channels, element %d", channels, k);
            for (int row = 0; row < T::kRows; ++row) {
              const bool is_weight = row < s.group_rows && k < s.inner;
              const int expected = is_weight ? weights.first[((int64_t)group * s.group_rows + row) * s.inner + k] : 0;
              expect(tile.first[row * T::kPitch + n] == expected, "%d channels, row %d, element %d", channels, row, k);
            }
          }
        }
    }
}

// Everything else goes the other way.
void what_is_not_taken() {
  for (int channels = 1; channels < 100; ++channels)
    for (int groups : {1, 2, 3})
      expect(channels_fill_vectors(shape(1, channels, 5, 5, 3, groups, 3, 0, 1, 0)) == (channels % 16 == 0), "%d channels", channels);
  Bytes memory(64);
  Fused f = shape(1, 16, 2, 2, 1, 1, 3, 0, 1, 0);
  f.x = f.program.out = memory.first, f.x_strides = {64, 64, 1, 32, 16};
  expect(goes_by_tap(f), "aligned channels");
  for (int n = 0; n < 7; ++n) {
    Fused g = f;
    if (n == 0) g.x = memory.first + 8;
    if (n == 1) g.program.out = memory.first + 4;
    if (n == 2) g.program.out = nullptr;
    if (n == 3) g.x_strides.channel = 4;
    if (n == 4) g.x_strides.image = 72;
    if (n == 5) g.x_strides.x = 24;
    if (n == 6) g.channels = 24;
    expect(!goes_by_tap(g), "case %d", n);
  }
}

// As large as each number may be.
void quotients() {
  for (int64_t a : {int64_t(0), int64_t(7), int64_t(0xffffffff), int64_t(1) << 32, (int64_t(1) << 45) + 12345})
    for (int64_t by : {int64_t(1), int64_t(9), int64_t(0xffffffff), (int64_t(1) << 33) + 1})
      expect(quotient_of(a, by) == a / by, "%lld / %lld", (long long)a, (long long)by);
}

}  // namespace

int main() {
  every_geometry();
  larger_shapes();
  what_lies_outside<false>();
  what_lies_outside<true>();
  what_is_not_taken();
  quotients();
  return nft_test::finish("cuda_int8_taps");
}
