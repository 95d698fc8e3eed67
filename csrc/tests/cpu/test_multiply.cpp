// The index arithmetic and the kernels of the one-pass product: every
// small convolution against the definition, on all instruction sets.
//
//   sum = bias[r] + sum_k W[r, k] x[n, channel(k), place of p under k],   zeros outside the input
//   y[n, r, p] = relu(sum * scale[r] + shift[r] + residual[n, r, p])
#include "cpu/product/multiply.h"

#include <math.h>

#include <vector>

#include "core/convolution_size.h"
#include "cpu/sampler/sampler.h"
#include "cpu/product/convolution_window.h"
#include "tests/check.h"

using namespace nft;
using nft_test::expect;

namespace {

// Small integers: every sum is exact, so any order of summation must give the very same number.
float value(int64_t i) { return (float)((i * 2654435761u >> 7) % 15) - 7.0f; }

enum { kBias = 1, kScale = 2, kShift = 4, kResidual = 8, kRelu = 16, kAll = 31 };

struct Case {
  Window w;
  std::vector<float> x, weight, bias, scale, shift, residual;

  // The parts of the epilogue that are in force, from row `row` on; the residual lies as the results do.
  EpiloguePointers epilogue(int parts, int64_t row, const float* laid_out) const {
    return {parts & kBias ? bias.data() + row : nullptr, parts & kScale ? scale.data() + row : nullptr,
            parts & kShift ? shift.data() + row : nullptr, parts & kResidual ? laid_out : nullptr,
            (parts & kRelu) != 0};
  }
};

// What is done to a sum, by definition.
float after_epilogue(const Case& c, int parts, int64_t row, float sum, float residual) {
  if (parts & kBias) sum += c.bias[(size_t)row];
  if (parts & kScale) sum *= c.scale[(size_t)row];
  if (parts & kShift) sum += c.shift[(size_t)row];
  if (parts & kResidual) sum += residual;
  return parts & kRelu && sum < 0 ? 0 : sum;
}

Case make(const Window& w) {
  Case c{w, {}, {}, {}, {}, {}, {}};
  for (int64_t i = 0; i < w.images * w.channels * w.height * w.width; ++i) c.x.push_back(value(i));
  for (int64_t i = 0; i < w.rows * w.inner(); ++i) c.weight.push_back(value(3 * i + 1));
  for (int64_t i = 0; i < w.rows; ++i) c.bias.push_back(value(7 * i + 2));
  for (int64_t i = 0; i < w.rows; ++i) c.scale.push_back(value(5 * i + 3));
  for (int64_t i = 0; i < w.rows; ++i) c.shift.push_back(value(9 * i + 4));
  for (int64_t i = 0; i < w.columns() * w.rows; ++i) c.residual.push_back(value(11 * i + 5));
  return c;
}

std::vector<float> definition(const Case& c, int parts) {
  const Window& w = c.w;
  std::vector<float> y((size_t)(w.images * w.rows * w.pixels()));
  for (int64_t n = 0; n < w.images; ++n)
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t oy = 0; oy < w.out[0]; ++oy)
        for (int64_t ox = 0; ox < w.out[1]; ++ox) {
          float sum = 0;
          const int64_t first = r / w.group_rows() * w.group_channels();
          for (int64_t channel = 0; channel < w.group_channels(); ++channel)
            for (int64_t ky = 0; ky < w.kernel[0]; ++ky)
              for (int64_t kx = 0; kx < w.kernel[1]; ++kx) {
                const int64_t iy = oy * w.stride[0] - w.padding[0] + ky * w.dilation[0];
                const int64_t ix = ox * w.stride[1] - w.padding[1] + kx * w.dilation[1];
                if (iy < 0 || iy >= w.height || ix < 0 || ix >= w.width) continue;
                sum += c.weight[(size_t)(((r * w.group_channels() + channel) * w.kernel[0] + ky) * w.kernel[1] + kx)] *
                       c.x[(size_t)(((n * w.channels + first + channel) * w.height + iy) * w.width + ix)];
              }
          const size_t at = (size_t)((n * w.rows + r) * w.pixels() + oy * w.out[1] + ox);
          y[at] = after_epilogue(c, parts, r, sum, c.residual[at]);
        }
  return y;
}

std::vector<float> padded(const Case& c, const Places& places) {
  const Window& w = c.w;
  std::vector<float> out((size_t)places.size(), 0.0f);
  for (int64_t n = 0; n < w.images; ++n)
    for (int64_t channel = 0; channel < w.channels; ++channel)
      for (int64_t y = 0; y < w.height; ++y)
        for (int64_t x = 0; x < w.width; ++x)
          out[(size_t)(n * places.image() + channel * places.channel() +
                       ((y + w.padding[0]) * w.padded(1) + x + w.padding[1]) * places.unit())] =
              c.x[(size_t)(((n * w.channels + channel) * w.height + y) * w.width + x)];
  return out;
}

std::vector<float> to_channels_last(const std::vector<float>& y, const Window& w) {
  std::vector<float> out(y.size());
  for (int64_t n = 0; n < w.images; ++n)
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t p = 0; p < w.pixels(); ++p)
        out[(size_t)((n * w.pixels() + p) * w.rows + r)] = y[(size_t)((n * w.rows + r) * w.pixels() + p)];
  return out;
}

// As cpu/torch/one_pass.h arranges it, without torch.
std::vector<float> one_pass(const Case& c, const Multiply& m, Order order, bool channels_last, int parts) {
  const Window& w = c.w;
  const Places places{w, order == Order::kImages, w.images};
  const std::vector<float> x = padded(c, places);
  const int64_t lanes = m.lanes, count = w.columns(), vectors = (count + lanes - 1) / lanes;
  std::vector<int32_t> starts((size_t)(vectors * lanes)), to((size_t)count), offsets = places.offsets();
  places.each_column(channels_last, [&](int64_t column, int64_t start, int64_t result) {
    starts[(size_t)column] = (int32_t)start;
    to[(size_t)column] = (int32_t)result;
  });
  for (int64_t i = count; i < vectors * lanes; ++i) starts[(size_t)i] = starts[(size_t)(count - 1)];
  std::vector<float> y((size_t)(count * w.rows), NAN);
  const std::vector<float> residual = channels_last ? to_channels_last(c.residual, w) : c.residual;
  for (int64_t group = 0; group < w.groups; ++group) {
    const float* from = x.data() + group * w.group_channels() * places.channel();
    std::vector<float> panels;
    std::vector<int32_t> first, step = offsets;
    if (order == Order::kPanels) {
      panels.resize((size_t)(vectors * w.inner() * lanes));
      for (int64_t v = 0; v < vectors; ++v)
        m.pack(from, &starts[(size_t)(v * lanes)], offsets.data(), w.inner(), &panels[(size_t)(v * w.inner() * lanes)]);
      for (int64_t k = 0; k < w.inner(); ++k) step[(size_t)k] = (int32_t)(k * lanes);
      from = panels.data();
    }
    for (int64_t v = 0; v < vectors; ++v)
      first.push_back(order == Order::kPanels ? (int32_t)(v * w.inner() * lanes) : starts[(size_t)(v * lanes)]);
    Columns columns{w.inner(),
                    count,
                    from,
                    first.data(),
                    step.data(),
                    to.data(),
                    channels_last ? 1 : w.pixels(),
                    !channels_last && order != Order::kImages && w.pixels() % lanes == 0};
    const int64_t row = group * w.group_rows(), rows = w.group_rows();
    const int64_t at_once = 2 * m.rows;
    std::vector<float> band((size_t)((rows + at_once - 1) / at_once * at_once * w.inner()),
                            NAN);  // rows past the last are dropped
    std::copy(c.weight.begin() + row * w.inner(), c.weight.begin() + (row + rows) * w.inner(), band.begin());
    const int64_t start = row * columns.row_stride;
    m.rows_times_columns(band.data(), rows, columns, c.epilogue(parts, row, residual.data() + start), y.data() + start);
  }
  return y;
}

int taken[3];  // how often each order was the natural one

void one_case(const Window& w, const Multiply& m) {
  const Case c = make(w);
  static int turn = 0;
  const int parts = turn++ % 3 == 0 ? turn / 3 % (kAll + 1) : turn % 2 ? kBias : kAll;
  const std::vector<float> want = definition(c, parts), want_last = to_channels_last(want, w);
  const Order order = w.order(m.lanes);
  ++taken[(int)order];
  std::vector<Order> orders{Order::kPanels};
  if (order != Order::kPanels) orders.push_back(order);
  for (Order o : orders)
    expect(one_pass(c, m, o, false, parts) == want && one_pass(c, m, o, true, parts) == want_last,
           "%s, order %d, epilogue %d: images %d, channels %d, %d x %d, rows %d, groups %d, kernel %d x %d, stride %d "
           "%d, padding "
           "%d %d, dilation %d %d",
           m.name, (int)o, parts, (int)w.images, (int)w.channels, (int)w.height, (int)w.width, (int)w.rows,
           (int)w.groups, (int)w.kernel[0], (int)w.kernel[1], (int)w.stride[0], (int)w.stride[1], (int)w.padding[0],
           (int)w.padding[1], (int)w.dilation[0], (int)w.dilation[1]);
}

bool fits(Window& w) {
  for (int i = 0; i < 2; ++i) {
    w.out[i] = generic::convolution_size(i ? w.width : w.height, w.kernel[i], w.stride[i], w.padding[i], w.dilation[i]);
    if (w.out[i] == 0) return false;
  }
  return true;
}

void everything_small(const Multiply& m) {
  for (int64_t images : {1, 3})
    for (int64_t height : {1, 2, 5})
      for (int64_t width : {1, 4, 7, 16, 18})
        for (int64_t kernel : {1, 2, 3})
          for (int64_t stride : {1, 2})
            for (int64_t padding : {0, 1})
              for (int64_t dilation : {1, 2})
                for (int64_t groups : {1, 2})
                  for (int64_t rows : {1, 5, 8, 11}) {
                    Window w{images,      2 * groups,       height,       width,         rows * groups, groups,
                             {kernel, 3}, {stride, stride}, {padding, 1}, {dilation, 1}, {0, 0}};
                    if (fits(w)) one_case(w, m);
                  }
}

void linear_layers(const Multiply& m) {
  for (int64_t images : {1, 2, 15, 16, 17, 32, 48})
    for (int64_t inputs : {1, 3, 64})
      for (int64_t rows : {1, 8, 9, 31}) {
        Window w{images, inputs, 1, 1, rows, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, {1, 1}};
        one_case(w, m);
      }
}

uint16_t half_of(float a) {  // exact for small integers
  uint32_t bits;
  memcpy(&bits, &a, sizeof bits);
  return (uint16_t)(bits >> 16);
}

// The epilogue by itself: any part of results that are in memory, what lies around it untouched.
void results_in_memory(const Multiply& m) {
  for (int64_t rows : {1, 3, 16, 37})
    for (int64_t inner : {1, 2, 9, 16, 35})
      for (int parts = 0; parts <= kAll; ++parts) {
        const Window w{2, 1, 1, inner, rows, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, {1, inner}};
        const Case c = make(w);
        const int64_t n = w.columns() * rows, begin = parts * n / 100, end = n - parts % 5 * n / 50;
        std::vector<float> y((size_t)n), want((size_t)n);
        std::vector<uint16_t> half((size_t)n), half_residual((size_t)n), half_want((size_t)n);
        for (int64_t i = 0; i < n; ++i) {
          const size_t at = (size_t)i;
          const bool inside = i >= begin && i < end;
          want[at] = y[at] = value(13 * i);
          half[at] = half_of(y[at]);
          half_residual[at] = half_of(c.residual[at]);
          if (inside) want[at] = after_epilogue(c, parts, i / inner % rows, y[at], c.residual[at]);
          half_want[at] = half_of(want[at]);
        }
        m.epilogue(c.epilogue(parts, 0, c.residual.data()), OutType::kFloat32, rows, inner, begin, end, y.data());
        EpiloguePointers of_half = c.epilogue(parts, 0, nullptr);
        if (parts & kResidual) of_half.residual = half_residual.data();
        m.epilogue(of_half, OutType::kBFloat16, rows, inner, begin, end, half.data());
        expect(y == want && half == half_want, "%s: results in memory, %d rows of %d, epilogue %d", m.name, (int)rows,
               (int)inner, parts);
      }
}

// Rounding to bfloat16 is that of the sampler: nearest, ties to even; NaN stays NaN and passes the ReLU.
void rounding(const Multiply& m) {
  const float shift[] = {1.00390625f, 1.01171875f, 1.0039064f, NAN, -NAN, INFINITY, -1.0f, 3.4e38f};
  const uint16_t want[] = {0x3f80, 0x3f82, 0x3f81, 0x7fc0, 0x7fc0, 0x7f80, 0, 0x7f80};
  uint16_t y[8] = {};
  m.epilogue({nullptr, nullptr, shift, nullptr, true}, OutType::kBFloat16, 8, 1, 0, 8, y);
  for (int i = 0; i < 8; ++i)
    expect(y[i] == want[i], "%s: %g rounds to %04x, not %04x", m.name, shift[i], want[i], y[i]);
}

}  // namespace

int main() {
  int count = 0;
  const Kernels* const* list = available_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const Multiply& m = multiply_of(*list[i]);
    everything_small(m);
    linear_layers(m);
    results_in_memory(m);
    rounding(m);
  }
  for (int order = 0; order < 3; ++order) expect(taken[order] > 0, "order %d occurs", order);
  return nft_test::exit_code("multiply");
}
