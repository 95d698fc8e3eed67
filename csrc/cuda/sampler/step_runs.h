// Four neighbouring weights of a layer with several steps (core/scaling.h): per expert, per output or per tile.
//
// A quad may reach over the end of a run, so each of its weights has its own step. Codes, random numbers and tables are
// those of four_weights.h. The index of a step takes integer divisions, once for all chips of a call. Host and device
// compile the same functions (csrc/tests/cuda/test_step_runs.cpp).
#pragma once

#include "core/scaling.h"
#include "cuda/sampler/four_weights.h"

namespace nft {
namespace NFT_ISA {

// Where a weight lies among the steps.
template <class Int>
struct StepPlace {
  Int k2, output;           // see core/scaling.h; output only if the steps are not in order
  Int row_step, row_input;  // of the first weight of its K2 neighbours: its step, its place in the tile
  Int step, input;          // of the weight itself
};

template <class Int>
NFT_FN StepPlace<Int> step_place(const Scaling& s, Int i) {
  const Int k2s = (Int)s.k2, outputs = (Int)s.outputs, tiles = (Int)s.tiles, rows = (Int)s.rows;
  const Int row = i / k2s;
  StepPlace<Int> at = {(Int)(i - row * k2s), 0, (Int)(row * tiles), 0, 0, 0};
  if (!steps_in_order(s)) {
    const Int outer = row / outputs, group = outer / (Int)s.k1;
    const Int input = (outer - group * (Int)s.k1) * k2s, tile = input / rows;
    at.output = row - outer * outputs;
    at.row_step = (group * outputs + at.output) * tiles + tile;
    at.row_input = input - tile * rows;
  }
  at.step = at.row_step;
  at.input = at.row_input + at.k2;
  if (tiles > 1) {
    const Int further = at.input / rows;
    at.step += further;
    at.input -= further * rows;
  }
  return at;
}

// From weight i - 1 to weight i.
template <class Int>
NFT_FN void advance(StepPlace<Int>& at, const Scaling& s, Int i) {
  if (++at.k2 < (Int)s.k2) {
    if (++at.input == (Int)s.rows) at.input = 0, ++at.step;
  } else if (!steps_in_order(s) && ++at.output == (Int)s.outputs) {
    at = step_place(s, i);
  } else {
    at.k2 = 0;
    at.row_step += (Int)s.tiles;
    at.step = at.row_step;
    at.input = at.row_input;
  }
}

template <class Int>
NFT_FN void find_steps(const Scaling& s, Int first, int count, int64_t* index) {
  StepPlace<Int> at = step_place(s, first);
  index[0] = at.step;
  for (int i = 1; i < 4; ++i) {
    if (i < count) advance(at, s, (Int)(first + i));
    index[i] = at.step;
  }
}

// The indices of a quad's steps. Behind the last weight they repeat that of the last one.
NFT_FN void steps_of_quad(const Scaling& s, int64_t n, int64_t quad, int64_t* index) {
  const int count = count_of(n, quad);
  if (n <= INT32_MAX)  // a division of 32 bits costs a fraction
    find_steps<uint32_t>(s, (uint32_t)(4 * quad), count, index);
  else
    find_steps<uint64_t>(s, (uint64_t)(4 * quad), count, index);
}

// Codes of four weights, and their steps with the weights' signs.
struct SteppedCodes {
  Codes codes;
  float step[4];
};

// A zero or NaN step gets the code 0: its weights become the step itself, and no table is read where it has no entry.
NFT_FN SteppedCodes load_stepped(const cuda::Program& p, const Scaling& s, int64_t quad) {
  const int count = count_of(p.n, quad);
  int64_t index[4];
  steps_of_quad(s, p.n, quad, index);
  SteppedCodes c;
  if (p.codes) {
    c.codes = load_codes(p, 0.0f, quad, count);
    for (int i = 0; i < 4; ++i) c.step[i] = usable_step(p.step + index[i]);
  } else {
    const float top = from_int((1 << p.weight_bits) - 1);
    const Quad<float> w = load(p.weight + 4 * quad, count);
    for (int i = 0; i < 4; ++i) {
      c.step[i] = usable_step(p.step + index[i]);
      c.codes.code[i] = code_of(w.v[i], c.step[i], top);
      c.codes.sign[i] = sign_of(w.v[i]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    if (!(c.step[i] > 0.0f)) c.codes.code[i] = 0.0f;
    c.step[i] = copy_sign(c.step[i], c.codes.sign[i]);
  }
  return c;
}

template <cuda::OutType kOut>
NFT_FN void store_as(void* out, int64_t at, int count, const float* w) {
  Quad<typename Stored<kOut>::Type> q;
  for (int i = 0; i < 4; ++i) q.v[i] = Stored<kOut>::from(w[i]);
  store((typename Stored<kOut>::Type*)out + at, count, q);
}

// program_quad (four_weights.h) with a step per weight. A step of zero makes its weights +0, a NaN step NaN.
template <int kPath>
NFT_FN void program_quad_of_runs(const cuda::Program& p, const Scaling& s, const Table& t, int64_t quad,
                                 int64_t first_chip, int64_t chip_stride) {
  const SteppedCodes c = load_stepped(p, s, quad);
  for (int64_t chip = first_chip; chip < p.chips; chip += chip_stride) {
    float w[4];
    quad_on_chip<kPath>(p, t, chip, quad, c.codes, w);
    for (int i = 0; i < 4; ++i) w[i] = step_is_zero(c.step[i]) ? 0.0f : mul(c.step[i], w[i]);
    const int64_t here = opaque(quad), at = chip * p.n + 4 * here;
    const int count = count_of(p.n, here);
    if (p.out_type == cuda::OutType::kFloat32)
      store_as<cuda::OutType::kFloat32>(p.out, at, count, w);
    else if (p.out_type == cuda::OutType::kBFloat16)
      store_as<cuda::OutType::kBFloat16>(p.out, at, count, w);
    else
      store_as<cuda::OutType::kFloat16>(p.out, at, count, w);
  }
}

// Packed codes of a quad; zero where the step is zero or NaN.
template <class Packed>
NFT_FN void quantize_quad_of_runs(const cuda::Program& p, const Scaling& s, Packed* codes, int64_t quad) {
  const SteppedCodes c = load_stepped(p, s, quad);
  Quad<Packed> q;
  for (int i = 0; i < 4; ++i) {
    const bool regular = c.step[i] > 0.0f || c.step[i] < 0.0f;  // its sign is the weight's
    q.v[i] = regular ? (Packed)pack_code(c.codes.code[i], c.codes.sign[i]) : Packed(0);
  }
  store(codes + 4 * quad, count_of(p.n, quad), q);
}

// |W| of a quad as bit patterns, and the indices of their steps.
struct QuadMagnitudes {
  uint32_t bits[4];
  int64_t index[4];
};

NFT_FN QuadMagnitudes magnitudes_of_quad(const float* weight, int64_t n, const Scaling& s, int64_t quad) {
  QuadMagnitudes m;
  steps_of_quad(s, n, quad, m.index);
  const Quad<float> w = load(weight + 4 * quad, count_of(n, quad));
  for (int i = 0; i < 4; ++i) m.bits[i] = bits_of(magnitude_of(w.v[i]));
  return m;
}

// Whether all weights of the quad have step `run`. Comparing the ends is not enough: outputs may alternate.
NFT_FN bool lies_in(const QuadMagnitudes& m, int64_t run) {
  return m.index[0] == run && m.index[1] == run && m.index[2] == run && m.index[3] == run;
}

NFT_FN uint32_t largest_of(const QuadMagnitudes& m) {
  uint32_t largest = m.bits[0];
  for (int i = 1; i < 4; ++i) largest = m.bits[i] > largest ? m.bits[i] : largest;
  return largest;
}

// Calls raise(index, max|W|) for neighbours with one step.
template <class Raise>
NFT_FN void raise_maxima(const QuadMagnitudes& m, const Raise& raise) {
  uint32_t largest = m.bits[0];
  for (int i = 1; i < 4; ++i) {
    const bool same = m.index[i] == m.index[i - 1];
    if (!same) raise(m.index[i - 1], largest);
    largest = same && largest > m.bits[i] ? largest : m.bits[i];
  }
  raise(m.index[3], largest);
}

}  // namespace NFT_ISA
}  // namespace nft
