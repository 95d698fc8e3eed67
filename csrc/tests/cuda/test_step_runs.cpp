// Layers with several steps on CUDA (csrc/cuda/sampler/step_runs.h), played through on the host: the index of every
// step against core/scaling.h, and steps, codes and programmed weights against the scalar CPU kernels, bit for bit, for
// every layout of csrc/core/scaling.h.
#include "cuda/sampler/step_runs.h"

#include <algorithm>
#include <string>

#include "cuda/sampler/layer_batch.h"
#include "tests/cpu/sampler_case.h"

using nft::Scaling;
using nft::cuda::OutType;

namespace {

const nft::Kernels& scalar() { return nft::kernels_named("scalar", "test"); }

Scaling scaling(int64_t groups, int64_t k1, int64_t outputs, int64_t k2, int64_t rows) {
  Scaling s;
  s.groups = groups, s.k1 = k1, s.outputs = outputs, s.k2 = k2, s.rows = rows;
  s.tiles = (k1 * k2 + rows - 1) / rows;
  return s;
}

int64_t weights_in(const Scaling& s) { return s.groups * s.k1 * s.outputs * s.k2; }

std::string text(const Scaling& s) {
  const int64_t numbers[] = {s.groups, s.k1, s.outputs, s.k2};
  std::string t = "[";
  for (int64_t number : numbers) t += std::to_string(number) + (number == s.k2 && &number == numbers + 3 ? "" : ", ");
  return t + "], " + std::to_string(s.rows) + " rows";
}

// ---- the index of a step

template <class Int>
void expect_steps(const Scaling& s, int64_t first, int count) {
  int64_t index[4];
  find_steps<Int>(s, (Int)first, count, index);
  bool same = true;
  for (int i = 0; i < 4; ++i) same = same && index[i] == step_index(s, first + (i < count ? i : count - 1));
  expect(same, "%s: the steps of %d weights from %ld on, by %d bytes", text(s).c_str(), count, (long)first,
         (int)sizeof(Int));
}

// All layouts of a few weights. Quads begin anywhere here.
void test_indices() {
  for (int64_t groups : {1, 2, 3})
    for (int64_t k1 = 1; k1 <= 4; ++k1)
      for (int64_t outputs = 1; outputs <= 5; ++outputs)
        for (int64_t k2 = 1; k2 <= 6; ++k2)
          for (int64_t rows = 1; rows <= k1 * k2; ++rows) {
            const Scaling s = scaling(groups, k1, outputs, k2, rows);
            for (int64_t first = 0; first < weights_in(s); ++first) {
              const int count = (int)std::min<int64_t>(4, weights_in(s) - first);
              expect_steps<uint32_t>(s, first, count);
              expect_steps<uint64_t>(s, first, count);
            }
          }
}

// Layers of more than 2^32 weights, near the borders of outputs, groups and 32 bits; and the largest of 32 bits.
void test_indices_far_in() {
  const Scaling large[] = {scaling(3, 1, 70001, 40009, 128), scaling(3, 40009, 70001, 1, 128),
                           scaling(2, 513, 70001, 90, 1000), scaling(int64_t(1) << 33, 1, 1, 9, 9),
                           scaling(1, 1, 1, int64_t(1) << 40, 7)};
  for (const Scaling& s : large) {
    const int64_t n = weights_in(s), group = n / s.groups, border = int64_t(1) << 32;
    for (int64_t near : {border, group, n - 8, n / 2, s.k2 * s.outputs, n - n / 3})
      for (int64_t first = std::max<int64_t>(0, near - 9); first < std::min(near + 9, n - 3); ++first)
        if (first % 4 == 0) {
          int64_t index[4];
          steps_of_quad(s, n, first / 4, index);
          bool same = true;
          for (int i = 0; i < 4; ++i) same = same && index[i] == step_index(s, first + i);
          expect(same, "%s: the steps of weights from %ld on", text(s).c_str(), (long)first);
        }
  }
  const Scaling narrow[] = {scaling(1, 1, INT32_MAX, 1, 1), scaling(1, INT32_MAX, 1, 1, INT32_MAX),
                            scaling(1, 1, 1, INT32_MAX, 3), scaling(1, INT32_MAX / 7, 7, 1, INT32_MAX / 7)};
  for (const Scaling& s : narrow)
    for (int64_t first = weights_in(s) - 9; first < weights_in(s); ++first)
      expect_steps<uint32_t>(s, first, (int)std::min<int64_t>(4, weights_in(s) - first));
}

// ---- layers

const Scaling kLayouts[] = {
    scaling(1, 1, 5, 77, 77),    // [out, in]
    scaling(1, 1, 5, 77, 16),    // in tiles, the last one short
    scaling(1, 1, 64, 9, 9),     // a depthwise kernel
    scaling(1, 1, 7, 27, 4),     // tiles that cut through a kernel
    scaling(1, 1, 300, 1, 1),    // one weight per output
    scaling(1, 77, 5, 1, 77),    // [in, out]
    scaling(1, 77, 5, 1, 10),    //
    scaling(1, 60, 3, 1, 60),    // a quad begins and ends in one output
    scaling(1, 4, 1, 1, 4),      // one quad
    scaling(1, 2, 3, 1, 2),      //
    scaling(1, 10, 6, 12, 120),  // a transposed convolution: [in, out, kernel]
    scaling(3, 4, 5, 9, 36),     // in groups
    scaling(3, 4, 5, 9, 10),     // and tiles
    scaling(4, 1, 1, 123, 123),  // one step per expert
    scaling(4, 1, 6, 33, 33),    // experts [E, out, in]
    scaling(4, 33, 6, 1, 33),    // experts [E, in, out]
    scaling(4, 33, 6, 1, 8),     //
    scaling(2, 1, 1, 2048, 128)  // long runs
};

// The weights of each third run are zeros; runs differ in size.
std::vector<float> weights_of(const Scaling& s) {
  std::vector<float> w = weights(weights_in(s));
  for (size_t i = 0; i < w.size(); ++i) {
    const int64_t run = step_index(s, (int64_t)i);
    w[i] *= run % 3 == 1 ? 0.0f : 0.01f * (float)(1 + run % 50);
  }
  return w;
}

std::vector<uint32_t> maxima(const std::vector<float>& w, const Scaling& s) {
  std::vector<uint32_t> found((size_t)step_count(s));
  scalar().maxima(w.data(), s, 0, s.groups * s.outputs, found.data());
  return found;
}

std::vector<float> steps_of(const std::vector<float>& w, const Scaling& s, int weight_bits) {
  std::vector<float> steps;
  for (uint32_t largest : maxima(w, s)) steps.push_back(step_of(float_of(largest), weight_bits));
  return steps;
}

// The kernel's warps: one maximum where all quads of a warp lie in one run, else one for each run of a quad.
void test_maxima(const Scaling& s) {
  std::vector<float> w = weights_of(s);
  const int64_t n = (int64_t)w.size();
  for (bool finite : {true, false}) {
    if (!finite) w[(size_t)n / 2] = NAN, w[(size_t)n - 1] = -INFINITY;
    std::vector<uint32_t> found((size_t)step_count(s), 0u);
    const auto raise = [&](int64_t index, uint32_t bits) {
      found[(size_t)index] = std::max(found[(size_t)index], bits);
    };
    for (int64_t strip = 0; strip < strips_of(n); ++strip) {
      std::vector<QuadMagnitudes> lanes;
      for (int64_t lane = 0; lane < kStrip; ++lane)
        lanes.push_back(magnitudes_of_quad(w.data(), n, s, std::min(strip * kStrip + lane, quads_of(n) - 1)));
      const int64_t run = lanes[0].index[0];
      bool one = true;
      for (const QuadMagnitudes& m : lanes) one = one && lies_in(m, run);
      for (const QuadMagnitudes& m : lanes)
        if (one)
          raise(run, largest_of(m));
        else
          raise_maxima(m, raise);
    }
    expect(found == maxima(w, s), "%s: largest magnitudes, finite %d", text(s).c_str(), finite);
    for (int64_t quad = 0; quad < quads_of(n); ++quad) {
      const QuadMagnitudes m = magnitudes_of_quad(w.data(), n, s, quad);
      const bool same = std::count(m.index, m.index + 4, m.index[0]) == 4;
      expect(lies_in(m, m.index[0]) == same, "%s: whether quad %ld lies in one run", text(s).c_str(), (long)quad);
    }
    const std::vector<uint32_t> want = maxima(w, s);
    for (size_t i = 0; i < want.size(); ++i) {
      const float step = step_or_nan(found[i], 8);
      expect(want[i] < 0x7f800000u ? same_bits(step, step_of(float_of(want[i]), 8)) : isnan(step),
             "%s: step %zu of weights that are finite %d", text(s).c_str(), i, finite);
    }
  }
}

nft::cuda::Program cuda_program(const Case& c, int64_t n, const float* steps) {
  nft::cuda::Program p{};
  p.n = n;
  p.step = steps;
  p.weight_bits = c.weight_bits, p.device_bits = c.device_bits;
  p.path = c.path, p.mapping = c.mapping;
  p.table = c.table.data();
  p.keys = &kKeys[0][0], p.chips = kChips, p.stream = kStream;
  p.code_bytes = c.weight_bits <= 15 ? 2 : 4;
  return p;
}

// All quads, with the chips split between two rows of a grid.
void run(const nft::cuda::Program& p, const Scaling& s, bool constant) {
  const Table table = {p.table, table_levels(p), constant};
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t quad = 0; quad < quads_of(p.n); ++quad) {
      if (p.path == kPathOff) program_quad_of_runs<kPathOff>(p, s, table, quad, row, 2);
      if (p.path == kPathFast) program_quad_of_runs<kPathFast>(p, s, table, quad, row, 2);
      if (p.path == kPathDevice) program_quad_of_runs<kPathDevice>(p, s, table, quad, row, 2);
    }
}

std::string stored(OutType type, float w) {
  const uint16_t half = type == OutType::kBFloat16 ? to_bfloat16(w) : to_float16(w);
  return type == OutType::kFloat32 ? std::string((const char*)&w, 4) : std::string((const char*)&half, 2);
}

void compare(nft::cuda::Program p, const Scaling& s, bool constant, const std::vector<float>& want, const char* what) {
  for (OutType type : {OutType::kFloat32, OutType::kBFloat16, OutType::kFloat16}) {
    const size_t width = type == OutType::kFloat32 ? 4 : 2;
    for (size_t offset : {0, 1}) {  // numbers from an aligned address
      std::vector<char> memory(want.size() * width + 64, 0x55);
      char* out = (char*)(((uintptr_t)memory.data() + 16 + 15) / 16 * 16) + offset * width;
      p.out = out, p.out_type = type;
      run(p, s, constant);
      size_t wrong = 0;
      for (size_t i = 0; i < want.size(); ++i) wrong += stored(type, want[i]) != std::string(out + i * width, width);
      expect(wrong == 0, "%s, %s, output %d: %zu of %zu weights differ", text(s).c_str(), what, (int)type, wrong,
             want.size());
      expect(out[-1] == 0x55 && out[want.size() * width] == 0x55, "%s, %s: writes outside its result", text(s).c_str(),
             what);
    }
  }
}

void test_layer(const Case& c, const Scaling& s) {
  const std::vector<float> w = weights_of(s), steps = steps_of(w, s, c.weight_bits);
  const int64_t n = (int64_t)w.size();
  std::vector<float> want((size_t)(kChips * n));
  nft::Program on_cpu = program_of(c, w.data(), n, 0.0f, want.data());
  on_cpu.scaling = s;
  on_cpu.steps = steps.data();
  scalar().program(on_cpu, 0, nft::chunks_of(n));
  std::vector<float> defined = want;  // the last chip by the definition too
  const Key key = make_key(kKeys[kChips - 1][0], kKeys[kChips - 1][1], kStream);
  for (int64_t i = 0; i < n; ++i)
    defined[(size_t)((kChips - 1) * n + i)] =
        definition(c, key, w[(size_t)i], steps[(size_t)step_index(s, i)], (uint64_t)i);
  expect_same(scalar(), c, text(s).c_str(), want, defined);
  for (int64_t i = 0; i < n; ++i)
    expect(steps[(size_t)step_index(s, i)] > 0 || bits_of(want[(size_t)i]) == 0, "%s: weight %ld of a run of zeros",
           text(s).c_str(), (long)i);

  const int bytes = c.weight_bits <= 15 ? 2 : 4;
  std::vector<int32_t> expected((size_t)n), codes((size_t)n + 1, 12345);
  scalar().quantize_runs(on_cpu, 0, n, expected.data(), bytes);
  nft::cuda::Program p = cuda_program(c, n, steps.data());
  p.weight = w.data();
  for (int64_t quad = 0; quad < quads_of(n); ++quad)
    if (bytes == 2)
      quantize_quad_of_runs(p, s, (int16_t*)codes.data(), quad);
    else
      quantize_quad_of_runs(p, s, codes.data(), quad);
  expect(memcmp(codes.data(), expected.data(), (size_t)(n * bytes)) == 0 && codes.back() == 12345, "%s, %s: codes",
         text(s).c_str(), c.name);

  for (int constant = 0; constant <= (int)c.constant; ++constant) {
    p.weight = w.data(), p.codes = nullptr;
    compare(p, s, constant != 0, want, c.name);
    p.weight = nullptr, p.codes = codes.data();
    compare(p, s, constant != 0, want, c.name);
  }
}

// A NaN or negative step makes its own weights NaN and codes 0. The code there may be any: no table is read for it.
void test_irregular_steps() {
  const Scaling s = scaling(1, 1, 4, 5, 5);
  const Case c = {"irregular steps", 8, 2, kPathFast, 0, table_of(256, false), false};
  const std::vector<float> w = weights(20);
  const float steps[4] = {0.002f, NAN, -1.0f, 0.0f};
  std::vector<float> out((size_t)(kChips * 20));
  std::vector<int16_t> codes(20);
  nft::cuda::Program p = cuda_program(c, 20, steps);
  p.weight = w.data();
  p.out = out.data();
  run(p, s, false);
  for (int64_t quad = 0; quad < 5; ++quad) quantize_quad_of_runs(p, s, codes.data(), quad);
  for (int given = 0; given < 2; ++given) {
    for (int i = 0; i < 20 * kChips; ++i) {
      const int output = i % 20 / 5;
      expect(output == 0   ? isfinite(out[(size_t)i]) && out[(size_t)i] != 0
             : output == 3 ? bits_of(out[(size_t)i]) == 0
                           : isnan(out[(size_t)i]),
             "weight %d with step %g", i, steps[output]);
      expect(output == 0 || given || codes[(size_t)(i % 20)] == 0, "code %d with step %g", i, steps[output]);
    }
    for (int i = 5; i < 20; ++i) codes[(size_t)i] = (int16_t)(i % 2 ? 32767 : -32768);
    p.weight = nullptr, p.codes = codes.data();
    for (int64_t quad = 0; quad < 5; ++quad)
      for (int i = 0; i < 4; ++i)
        expect(4 * quad + i < 5 || load_stepped(p, s, quad).codes.code[i] == 0, "no table is read for weight %ld",
               (long)(4 * quad + i));
    run(p, s, false);
  }
}

}  // namespace

int main() {
  test_indices();
  test_indices_far_in();
  for (const Scaling& s : kLayouts) test_maxima(s);
  for (const Case& c : cases())
    for (const Scaling& s : kLayouts) test_layer(c, s);
  test_irregular_steps();
  return nft_test::exit_code("step_runs");
}
