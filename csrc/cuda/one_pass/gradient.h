// The gradient with respect to the input, as a product like that of shape.h:
//
//   grad_x[s, b, c, p] = sum_k W_p[s, r(k), c, t(k)] grad[s, b, r(k), the pixel that saw p through t(k), if any]
//
// for each chip s and group: rows c (input channels of the group), columns (b, p) (all input pixels
// of all images of the chip), inner k = (r, t): output channel r of the group, place t under the
// kernel. Each input pixel collects what reaches it, so every element has one writer and no atomics
// are needed. In a OnePassProduct, x is `grad` (channels, height, width are the result's), y is
// grad_x (rows, out are the input's), and kernel, stride, padding, dilation are the layer's.
//
// The weight's order is (r, c, t). So the rows of a tile under one output channel are kRows * taps neighbours: a run.
// Whole quads cover a run; it needs one quad more (in kRows * taps / 4) if C / groups * taps is no multiple of four.
// A step takes whole output channels, as many as fit, so no quad is generated twice. The rest of the step is multiplied
// as zeros: of a step of 16, 32 or 64, linear layers and 1 x 1 kernels fill all, 3 x 3 kernels 9, 27 or 63. A kernel
// with more taps than a step is cut, and its runs are one row's taps of a step. With a stride, most pixels have no
// partner under most taps (three of four at stride 2), which are zeros too.
#pragma once

#include <type_traits>

#include "cuda/one_pass/tile.h"

namespace nft {
namespace NFT_ISA {

// Quotients by a number that is fixed for a launch: exact if dividend * divisor < 2^19 and dividend < 2^13.
struct Divisor {
  uint32_t by, factor;
};

NFT_FN Divisor divisor(int by) { return {(uint32_t)by, ((1u << 19) + (uint32_t)by - 1) / (uint32_t)by}; }
NFT_FN int quotient(int a, const Divisor& d) { return (int)((uint32_t)a * d.factor >> 19); }

// The sizes of the product, with the layout of a step.
struct GradientSizes : Sizes {
  int taps;
  int cuts;                      // steps per kernel; 1: a step holds whole kernels
  int step_channels;             // output channels of a step
  int step_taps;                 // inner elements of each
  bool ragged;                   // runs need not start at a multiple of four
  Divisor by_channels, by_taps;  // step_channels, step_taps
  int residue[2];                // see place_on_axis
};

// An input coordinate, or a tap's distance, divided by the stride. A pixel of the result
// sees the input pixel through the tap if the quotients' difference is its coordinate and
// the remainders are equal. One number holds both: remainders are `residue` apart, farther
// than quotients differ, so with unequal remainders the difference is no coordinate.
struct AxisPlace {
  int quotient, place;
};
NFT_FN AxisPlace place_on_axis(const cuda::OnePassProduct& f, const GradientSizes& s, int axis, int a) {
  if (f.stride[axis] == 1) return {a, a};
  const int q = a / f.stride[axis];
  return {q, q + (a - q * f.stride[axis]) * s.residue[axis]};
}

NFT_FN int64_t residue_of(const cuda::OnePassProduct& f, int axis) {
  const int64_t seen = axis ? f.width : f.height, far = (int64_t)f.dilation[axis] * (f.kernel[axis] - 1);
  return seen + far / f.stride[axis] + ((int64_t)f.out[axis] + f.padding[axis]) / f.stride[axis] + 1;
}

// `most`: inner elements of a step.
NFT_FN GradientSizes gradient_sizes_of(const cuda::OnePassProduct& f, int most) {
  GradientSizes s;
  (Sizes&)s = sizes_of(f);
  s.taps = f.kernel[0] * f.kernel[1];
  s.cuts = (s.taps + most - 1) / most;
  s.step_taps = s.cuts > 1 ? most : s.taps;
  s.step_channels = most / s.step_taps;
  s.ragged = (int64_t)s.group_rows * s.taps % 4 != 0 || (s.cuts > 1 && s.taps % 4 != 0);
  s.by_channels = divisor(s.step_channels);
  s.by_taps = divisor(s.step_taps);
  for (int i = 0; i < 2; ++i) s.residue[i] = (int)residue_of(f, i);
  return s;
}

// Whether 32-bit coordinates and inner indices hold everything.
NFT_FN bool gradient_coordinates_fit(const cuda::OnePassProduct& f) {
  const int64_t most = 1 << 29;
  bool fit = f.rows < most && f.channels < most && f.program.chips < most &&
             (int64_t)(f.channels / f.groups) * f.kernel[0] * f.kernel[1] < most;
  for (int i = 0; i < 2; ++i)
    fit = fit && (i ? f.width : f.height) < most && (int64_t)f.out[i] + f.padding[i] < most &&
          (int64_t)f.dilation[i] * (f.kernel[i] - 1) < most && f.stride[i] * residue_of(f, i) < most;
  return fit;
}

// The sizes of a product with a tile: of the layer's (Sizes) or of the gradient's (GradientSizes).
template <class T, class S>
NFT_FN S sizes_for(const cuda::OnePassProduct& f) {
  if constexpr (std::is_same<S, GradientSizes>::value)
    return gradient_sizes_of(f, T::kInner);
  else
    return S{sizes_of(f)};
}

template <class T>
NFT_FN int steps_of(const GradientSizes& s) {
  return (s.group_channels + s.step_channels - 1) / s.step_channels * s.cuts;
}

// ---- the gathered input

NFT_FN Column column_of(const cuda::OnePassProduct& f, const GradientSizes& s, const Place& place, int64_t column) {
  if (column >= s.columns) return {0, kOutside, kOutside};
  Pixel p = pixel_of(f, s, column);
  const AxisPlace y = place_on_axis(f, s, 0, p.y + f.padding[0]), x = place_on_axis(f, s, 1, p.x + f.padding[1]);
  p.y = y.quotient;
  p.x = x.quotient;
  return {offset_of(f.x_strides, place.chip, p, place.group * s.group_channels), y.place, x.place};
}

// Element n of a step.
template <class T>
NFT_FN Tap tap_of(const cuda::OnePassProduct& f, const GradientSizes& s, int step, int n) {
  const int nth = quotient(n, s.by_taps), bundle = s.cuts == 1 ? step : step / s.cuts;
  const int channel = bundle * s.step_channels + nth,
            tap = n - nth * s.step_taps + (step - bundle * s.cuts) * s.step_taps;
  if (nth >= s.step_channels || channel >= s.group_channels || tap >= s.taps) return {0, kOutside, kOutside};
  const int row = tap / f.kernel[1];
  const AxisPlace y = place_on_axis(f, s, 0, row * f.dilation[0]);
  const AxisPlace x = place_on_axis(f, s, 1, (tap - row * f.kernel[1]) * f.dilation[1]);
  return {channel * f.x_strides.channel - y.quotient * f.x_strides.y - x.quotient * f.x_strides.x, -y.place, -x.place};
}

// ---- weights: from the quads of a step's runs to threads

template <class T>
NFT_FN int run_length(const GradientSizes& s) {
  return s.cuts == 1 ? T::kRows * s.taps : s.step_taps;
}

template <class T>
NFT_FN int slots_of_step(const GradientSizes& s) {
  return (s.cuts == 1 ? s.step_channels : T::kRows) * (run_length<T>(s) / 4 + s.ragged);
}

// One quad's place: its element i is number `first` + i of a run, which may be negative or past the run.
struct RunSlot {
  int row;      // of the run's first element
  int channel;  // of the step
  int first;
  int64_t quad;
  int valid;  // elements i with first + i < valid are weights of this group; the other elements of the run are zero
};

// Neighbouring threads take neighbouring channels (or rows, if a kernel is cut), whose weights lie in different banks.
template <class T>
NFT_FN RunSlot slot_of(const GradientSizes& s, const Place& place, int step, int slot) {
  RunSlot to;
  const int nth = s.cuts == 1 ? quotient(slot, s.by_channels) : slot / T::kRows;
  const int run = slot - nth * (s.cuts == 1 ? s.step_channels : T::kRows);
  to.row = s.cuts == 1 ? 0 : run;
  to.channel = s.cuts == 1 ? run : 0;
  const int bundle = s.cuts == 1 ? step : step / s.cuts, tap = (step - bundle * s.cuts) * s.step_taps;
  const int channel = bundle * s.step_channels + to.channel, row = place.row + to.row;
  const int64_t element = (((int64_t)place.group * s.group_channels + channel) * s.group_rows + row) * s.taps + tap;
  to.quad = element / 4 + nth;
  to.first = 4 * nth - (int)(element % 4);
  const int rows = s.group_rows - row < T::kRows ? s.group_rows - row : T::kRows;
  to.valid = channel >= s.group_channels || rows <= 0 ? 0 : s.cuts == 1 ? rows * s.taps : s.taps - tap;
  if (to.valid > run_length<T>(s)) to.valid = run_length<T>(s);
  return to;
}

template <class T>
NFT_FN bool is_used(const RunSlot& s) {
  return s.valid > 0 && s.first < s.valid && s.first + 4 > 0;
}

// The tile's place of a run's number, and then of the next one.
struct RunPlace {
  int row, tap;
};
NFT_FN RunPlace place_in_run(const GradientSizes& s, const RunSlot& to) {
  if (s.cuts > 1) return {to.row, to.first};
  const int above =
      quotient(to.first + 4 * s.taps, s.by_taps);  // from four rows above: a run may begin inside the quad
  return {above - 4, to.first + 4 * s.taps - above * s.taps};
}
NFT_FN void advance(const GradientSizes& s, RunPlace& p) {
  if (++p.tap == s.taps && s.cuts == 1) {
    p.tap = 0;
    ++p.row;
  }
}

template <class T>
NFT_FN void put_weights(const GradientSizes& s, const RunSlot& to, const typename T::Element* v,
                        typename T::Element* tile) {
  RunPlace p = place_in_run(s, to);
  for (int i = 0; i < 4; ++i) {
    const int at = to.first + i;
    if (at >= 0 && at < run_length<T>(s)) tile[p.row * T::kPitch + to.channel * s.step_taps + p.tap] = v[i];
    advance(s, p);
  }
}

// Zeros for the elements that no run writes, once for all steps.
template <class T>
NFT_FN void clear_rest(const GradientSizes& s, int thread, typename T::Element* tile) {
  const int full = s.step_channels * s.step_taps;
  for (int row = thread; row < T::kRows; row += T::kThreads)
    for (int k = full; k < T::kInner; ++k) tile[row * T::kPitch + k] = typename T::Element(0);
}

}  // namespace NFT_ISA
}  // namespace nft
