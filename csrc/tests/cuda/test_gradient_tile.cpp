// The index arithmetic of the input gradient's kernel by itself (csrc/cuda/one_pass/gradient.h): every weight lands
// once in its tile, at every size that a test can count out, with the bits that the CPU's sampler gives it; gathered
// places are those of the definition; quotients are exact. The products made with it: test_gradient.cpp.
#include <set>
#include <vector>

#include "tests/cuda/one_pass_layer.h"

using namespace nft::generic;
using nft::cuda::OnePassProduct;
using nft::cuda::OutType;
using nft_test::expect;
using nft_test::shape;
using nft_test::Words;

namespace {

void quotients_are_exact() {
  for (int by = 1; by <= 64; ++by)
    for (int a = 0; a < 1 << 13 && a * by < 1 << 19; ++a)
      expect(quotient(a, divisor(by)) == a / by, "%d / %d: %d", a, by, quotient(a, divisor(by)));
}

// The product of a layer with `outputs` and `inputs` channels per group, two groups.
OnePassProduct gradient_of(int outputs, int inputs, int kernel_y, int kernel_x) {
  OnePassProduct f = {};
  f.images = 1, f.groups = 2, f.channels = 2 * outputs, f.rows = 2 * inputs;
  f.kernel[0] = kernel_y, f.kernel[1] = kernel_x;
  for (int i = 0; i < 2; ++i) f.stride[i] = f.dilation[i] = 1, f.out[i] = f.kernel[i];
  f.height = f.width = 1;
  f.program.chips = 1;
  return f;
}

// Of the slots of all steps: each element of a tile has one writer or is cleared, each weight of the tile's rows one
// slot, no quad is made twice where a step holds whole kernels, and no more quads than gradient.h says.
template <class T>
void slots_cover_the_weights(int outputs, int inputs, int kernel_y, int kernel_x) {
  const OnePassProduct f = gradient_of(outputs, inputs, kernel_y, kernel_x);
  const GradientSizes s = gradient_sizes_of(f, T::kInner);
  const int64_t n = (int64_t)f.channels * inputs * s.taps;
  for (int row = 0; row < inputs; row += T::kRows) {
    const Place place = {0, 1, row, 0};
    std::vector<int> weights((size_t)n, 0);
    int64_t made = 0, wanted = 0;
    for (int step = 0; step < steps_of<T>(s); ++step) {
      std::vector<int> times((size_t)(T::kRows * T::kInner), 0);
      for (int slot = 0; slot < slots_of_step<T>(s); ++slot) {
        const RunSlot to = slot_of<T>(s, place, step, slot);
        made += is_used<T>(to);
        RunPlace p = place_in_run(s, to);
        for (int i = 0; i < 4; ++i, advance(s, p)) {
          const int at = to.first + i;
          if (at < 0 || at >= run_length<T>(s)) continue;
          const int k = to.channel * s.step_taps + p.tap;
          ++times[(size_t)(p.row * T::kInner + k)];
          const Tap tap = tap_of<T>(f, s, step, k);
          const bool exists = row + p.row < inputs && tap.y > kOutside;
          expect(exists == (at < to.valid) && (!exists || is_used<T>(to)),
                 "%d x %d, %d x %d: step %d, slot %d, element %d exists: %d", outputs, inputs, kernel_y, kernel_x, step,
                 slot, i, exists);
          if (!exists) continue;
          const int64_t element = 4 * to.quad + i, above = element / s.taps, channel = above / inputs - outputs;
          expect(above % inputs == row + p.row && channel == step / s.cuts * s.step_channels + to.channel &&
                     element % s.taps == step % s.cuts * s.step_taps + p.tap,
                 "%d x %d, %d x %d: step %d, slot %d, element %d is weight %lld", outputs, inputs, kernel_y, kernel_x,
                 step, slot, i, (long long)element);
          ++weights[(size_t)element];
        }
      }
      for (int i = 0; i < T::kRows * T::kInner; ++i)
        expect(times[(size_t)i] == (i % T::kInner < s.step_channels * s.step_taps),
               "%d x %d, %d x %d: written %d times", outputs, inputs, kernel_y, kernel_x, times[(size_t)i]);
    }
    for (int64_t element = 0; element < n; ++element) {
      const int64_t above = element / s.taps, c = above % inputs;
      const bool here = above / inputs >= outputs && c >= row && c < row + T::kRows;
      expect(weights[(size_t)element] == here, "%d x %d, %d x %d: weight %lld is made %d times", outputs, inputs,
             kernel_y, kernel_x, (long long)element, weights[(size_t)element]);
      wanted += here;
    }
    if (s.cuts == 1) expect(made <= wanted / 4 + 2 * outputs, "%d quads for %d weights", (int)made, (int)wanted);
    if (!s.ragged) expect(4 * made == wanted, "%d quads for %d weights", (int)made, (int)wanted);
  }
}

template <class T>
void every_size() {
  for (int outputs : {1, 2, 5, 17, 65})
    for (int inputs : {1, 2, 3, 4, 15, 16, 17, 64, 70})
      for (int kernel_y : {1, 2, 3, 5, 8})
        for (int kernel_x : {1, 2, 3, 4, 9})
          if (outputs < 17 || kernel_y * kernel_x <= 9) slots_cover_the_weights<T>(outputs, inputs, kernel_y, kernel_x);
}

// A column and a tap meet inside exactly where a pixel of the result
// saw the input pixel through the tap, and there in its place.
template <class T>
void places_are_those_of_the_definition(const OnePassProduct& layer) {
  OnePassProduct f = layer;
  f.channels = layer.rows, f.height = layer.out[0], f.width = layer.out[1];
  f.rows = layer.channels, f.out[0] = layer.height, f.out[1] = layer.width;
  f.program.chips = 1;
  f.x_strides = {0, 100003, 1009, 37, 1};
  const GradientSizes s = gradient_sizes_of(f, T::kInner);
  expect(gradient_coordinates_fit(f), "fits");
  for (int64_t column = 0; column < s.columns; ++column) {
    const Pixel p = pixel_of(f, s, column);
    const Column c = column_of(f, s, {0, 0, 0, 0}, column);
    std::set<int64_t> found, wanted;
    for (int step = 0; step < steps_of<T>(s); ++step)
      for (int n = 0; n < T::kInner; ++n) {
        const Tap t = tap_of<T>(f, s, step, n);
        if (is_inside(f, c, t)) expect(found.insert(c.start + t.offset).second, "a place is gathered twice");
      }
    for (int r = 0; r < f.channels; ++r)
      for (int oy = 0; oy < f.height; ++oy)
        for (int ox = 0; ox < f.width; ++ox)
          for (int ky = 0; ky < f.kernel[0]; ++ky)
            for (int kx = 0; kx < f.kernel[1]; ++kx)
              if (oy * f.stride[0] - f.padding[0] + ky * f.dilation[0] == p.y &&
                  ox * f.stride[1] - f.padding[1] + kx * f.dilation[1] == p.x)
                wanted.insert(p.image * 100003 + r * 1009 + oy * 37 + ox);
    expect(found == wanted, "stride %d %d, dilation %d %d, pixel %d %d: %d places, not %d", f.stride[0], f.stride[1],
           f.dilation[0], f.dilation[1], p.y, p.x, (int)found.size(), (int)wanted.size());
  }
}

void every_place() {
  for (int size = 1; size <= 9; ++size)
    for (int stride = 1; stride <= 4; ++stride)
      for (int dilation = 1; dilation <= 3; ++dilation)
        for (int padding = 0; padding <= 3; ++padding)
          for (int kernel = 1; kernel <= 4; ++kernel) {
            OnePassProduct f = shape(2, 1, size, 5, 2, 1, 1, 0, 0, 0);
            f.kernel[0] = kernel, f.kernel[1] = 5 - kernel;
            f.stride[0] = stride, f.stride[1] = 5 - stride, f.dilation[0] = dilation, f.dilation[1] = 4 - dilation;
            f.padding[0] = padding, f.padding[1] = 2;
            for (int i = 0; i < 2; ++i) {
              f.out[i] =
                  (int)convolution_size(i ? f.width : f.height, f.kernel[i], f.stride[i], f.padding[i], f.dilation[i]);
            }
            if (f.out[0] && f.out[1]) places_are_those_of_the_definition<Tile<OutType::kFloat32, false>>(f);
          }
}

// ---- the tile's bits

std::vector<float> on_the_cpu(const nft_test::Layer& layer, const nft::Kernels& kernels) {
  const nft::cuda::Program& from = layer.program;
  std::vector<float> out((size_t)(from.chips * from.n));
  nft::Program p{};
  p.weight = layer.weight.data(), p.n = from.n, p.step = layer.step;
  p.weight_bits = from.weight_bits, p.device_bits = from.device_bits, p.path = from.path, p.mapping = from.mapping;
  p.table = from.table, p.keys = from.keys, p.chips = (int)from.chips, p.stream = from.stream;
  p.out_type = nft::OutType::kFloat32, p.out = out.data();
  kernels.program(p, 0, nft::chunks_of(p.n));
  return out;
}

template <class T, int kPath>
void tiles_have_the_samplers_bits(int outputs, int inputs, int kernel_y, int kernel_x) {
  typedef Stored<T::kType> Out;
  OnePassProduct f = gradient_of(outputs, inputs, kernel_y, kernel_x);
  Words words(5);
  nft_test::Noise noise;
  noise.path = kPath, noise.chips = 2, noise.limits = kPath == kPathDevice;
  const nft_test::Layer layer(noise, (int64_t)f.channels * inputs * kernel_y * kernel_x, words);
  f.program = layer.program;
  const GradientSizes s = gradient_sizes_of(f, T::kInner);
  const Table table = {f.program.table, table_levels(f.program), false};
  nft_test::each_instruction_set([&](const nft::Kernels& kernels) {
    const std::vector<float> want = on_the_cpu(layer, kernels);
    const Tiling tiling = tiling_of(f, s, T::kRows, T::kColumns);
    for (int64_t number = 0; number < tiling.count; ++number) {
      const Place place = place_of(f, tiling, number);
      std::vector<typename T::Element> tile((size_t)(T::kRows * T::kPitch));
      memset(tile.data(), 0xff, tile.size() * sizeof tile[0]);
      for (int thread = 0; thread < T::kThreads; ++thread) clear_rest<T>(s, thread, tile.data());
      for (int step = 0; step < steps_of<T>(s); ++step) {
        for (int thread = 0; thread < T::kThreads; ++thread)
          fill_weights<T, kPath>(f.program, table, s, place, step, thread, tile.data());
        for (int row = 0; row < T::kRows; ++row)
          for (int k = 0; k < T::kInner; ++k) {
            const int channel = step / s.cuts * s.step_channels + k / s.step_taps;
            const int tap = step % s.cuts * s.step_taps + k % s.step_taps;
            const bool exists =
                k < s.step_channels * s.step_taps && channel < outputs && tap < s.taps && place.row + row < inputs;
            const int64_t element =
                ((place.group * (int64_t)outputs + channel) * inputs + place.row + row) * s.taps + tap;
            const auto one = Out::from(exists ? want[(size_t)(place.chip * f.program.n + element)] : 0.0f);
            expect(memcmp(&tile[(size_t)(row * T::kPitch + k)], &one, sizeof one) == 0,
                   "%s, %d x %d, %d x %d: step %d, row %d, k %d", kernels.name, outputs, inputs, kernel_y, kernel_x,
                   step, row, k);
          }
      }
    }
  });
}

template <class T>
void every_bit() {
  for (int outputs : {3, 34})
    for (int inputs : {5, 16, 67})
      for (int kernel : {1, 3, 9}) {
        tiles_have_the_samplers_bits<T, kPathFast>(outputs, inputs, kernel, (kernel + 1) / 2);
        tiles_have_the_samplers_bits<T, kPathOff>(outputs, inputs, kernel, kernel);
        if (outputs == 3) tiles_have_the_samplers_bits<T, kPathDevice>(outputs, inputs, 2, kernel);
      }
}

void large_coordinates() {
  OnePassProduct f = gradient_of(4, 4, 3, 3);
  expect(gradient_coordinates_fit(f), "a small layer fits");
  f.stride[0] = 1 << 28;
  expect(!gradient_coordinates_fit(f), "remainders of 2^28 do not");
  f = gradient_of(4, 4, 3, 3);
  f.out[1] = 1 << 29;
  expect(!gradient_coordinates_fit(f), "2^29 pixels in a row do not");
}

}  // namespace

int main() {
  quotients_are_exact();
  every_size<Tile<OutType::kFloat32, false>>();
  every_size<Tile<OutType::kFloat32, true>>();
  every_size<Tile<OutType::kBFloat16, false>>();
  every_size<Tile<OutType::kBFloat16, true>>();
  every_place();
  every_bit<Tile<OutType::kFloat32, false>>();
  every_bit<Tile<OutType::kBFloat16, true>>();
  every_bit<Tile<OutType::kFloat16, false>>();
  large_coordinates();
  return nft_test::exit_code("gradient_tile");
}
