// The sampler against its definition: every path on every instruction set gives the bits that csrc/core gives one weight at a
// time, however the work is cut, however many chips share a call, and wherever the weights come from.
#include <math.h>

#include <vector>

#include "../core/conductance.h"
#include "check.h"

using namespace nft::generic;
using nft_test::expect;
using nft_test::same_bits;

namespace {

constexpr int64_t kKeys[3][2] = {{0x0123456789abcdef, 5}, {-7, (int64_t(1) << 32) | 0xfffffffe}, {42, (int64_t(2) << 32)}};
constexpr uint32_t kStream = 0x9e3779b9u;
constexpr int kChips = 3;

struct Case {
  const char* name;
  int weight_bits, device_bits, path, mapping;
  std::vector<float> table;
  bool constant;  // the table may be read without a gather
};

// ---- the definition, one weight at a time

float normal(const Key& key, uint32_t slice, uint64_t element, const Limits* limits) {
  uint32_t c[4] = {counter0(element / 4), counter1(element / 4, slice, key.domain), key.stream, key.draw};
  philox(c[0], c[1], c[2], c[3], key.k0, key.k1);
  if (limits && limits->half_mass > 0) return truncated_normal(c[element % 4], limits->half_mass);
  float z[4];
  box_muller(c[0], c[1], z[0], z[1]);
  box_muller(c[2], c[3], z[2], z[3]);
  return z[element % 4];
}

uint32_t word(const Key& key, uint32_t slice, uint64_t element) {
  uint32_t c[4] = {counter0(element / 4), counter1(element / 4, slice, key.domain), key.stream, key.draw};
  philox(c[0], c[1], c[2], c[3], key.k0, key.k1);
  return c[element % 4];
}

float definition(const Case& c, const Key& key, float weight, float step, uint64_t element) {
  if (step_is_zero(step)) return 0.0f;
  const float code = code_of(weight, step, (float)((1 << c.weight_bits) - 1));
  const uint32_t sign = sign_of(weight);
  const int q = to_int(code);
  if (c.path == kPathOff) return programmed(code, step, sign);
  if (c.path == kPathFast) {
    const float std = c.table[(1 << c.weight_bits) + q];
    return programmed(weight_in_steps(c.table[q], std, normal(key, kSliceWeight, element, nullptr)), step, sign);
  }
  const int levels = 1 << c.device_bits;
  const Limits limits = limits_of(c.table.data(), c.device_bits);
  float sum = 0.0f;
  for (int idle = 0; idle <= c.mapping; ++idle) {
    for (int j = 0; j < c.weight_bits / c.device_bits; ++j) {
      const int level = idle ? 0 : (q >> (j * c.device_bits)) % levels;
      const float z = normal(key, (idle ? kSliceIdle : kSliceActive) + j, element, &limits);
      float g = conductance(c.table[level], c.table[levels + level], z, limits);
      if (limits.stuck_any > 0)
        g = with_fault(g, word(key, (idle ? kSliceIdleFault : kSliceFault) + j, element), (float)(levels - 1), limits);
      const float part = g * (float)(1 << (j * c.device_bits));
      sum = idle ? sum - part : sum + part;
    }
  }
  return programmed(sum, step, sign);
}

// ---- what is programmed

std::vector<float> table_of(int levels, bool constant, const std::vector<float>& limits = {}) {
  std::vector<float> table;
  for (int i = 0; i < levels; ++i) table.push_back(constant ? (float)i : (float)i * 0.97f + 0.05f);
  for (int i = 0; i < levels; ++i) table.push_back(constant ? 0.3f : 0.1f + 0.4f * (float)((i * 5) % levels) / (float)levels);
  table.insert(table.end(), limits.begin(), limits.end());
  return table;
}

// Plain means, each level its own deviation.
std::vector<float> preset_table(int levels) {
  std::vector<float> table = table_of(levels, true);
  for (int i = 0; i < levels; ++i) table[levels + i] = 0.1f + 0.4f * (float)((i * 5) % levels) / (float)levels;
  return table;
}

std::vector<Case> cases() {
  const float inf = INFINITY;
  // z_max, g_min, g_max, stuck_off, stuck_any, half_mass
  const std::vector<float> gaussian = {inf, -inf, inf, 0, 0, 0}, censored = {0.5f, -inf, inf, 0, 0, 0},
                           clipped = {inf, 0, 2.5f, 0, 0, 0}, stuck = {inf, -inf, inf, 0.1f, 0.3f, 0},
                           truncated = {inf, -inf, inf, 0, 0, 0.47724987f}, all = {inf, 0, 3, 0.2f, 0.25f, 0.49865010f};
  std::vector<Case> list = {
      {"off", 8, 2, kPathOff, 0, {}, false},
      {"off, 16 bits", 16, 4, kPathOff, 0, {}, false},
      {"fast", 8, 2, kPathFast, 0, table_of(256, true), true},
      {"fast, table", 8, 2, kPathFast, 0, table_of(256, false), false},
      {"fast, preset", 8, 2, kPathFast, 0, preset_table(256), false},
      {"fast, 1 bit", 1, 1, kPathFast, 0, table_of(2, false), false},
      {"fast, 15 bits", 15, 5, kPathFast, 0, table_of(1 << 15, false), false},
      {"fast, 16 bits", 16, 2, kPathFast, 0, table_of(1 << 16, true), true},
      {"devices", 8, 2, kPathDevice, 0, table_of(4, true, gaussian), true},
      {"devices, table", 8, 2, kPathDevice, 0, table_of(4, false, gaussian), false},
      {"devices of 1 bit, table", 4, 1, kPathDevice, 0, table_of(2, false, gaussian), false},
      {"devices of 4 bits, table", 8, 4, kPathDevice, 1, table_of(16, false, gaussian), false},
      {"devices of 5 bits, table", 15, 5, kPathDevice, 0, table_of(32, false, gaussian), false},
      {"one device of 8 bits", 8, 8, kPathDevice, 0, table_of(256, false, gaussian), false},
      {"16 devices of 1 bit, differential", 16, 1, kPathDevice, 1, table_of(2, true, all), true},
  };
  const std::vector<float>* limits[] = {&gaussian, &censored, &clipped, &stuck, &truncated, &all};
  const char* names[] = {"gaussian, 6/3", "censored", "clipped", "stuck", "truncated", "clipped, stuck, truncated"};
  for (int i = 0; i < 6; ++i) {
    const bool constant = i % 2 == 1;
    for (int mapping : {0, 1}) list.push_back({names[i], 6, 3, kPathDevice, mapping, table_of(8, constant, *limits[i]), constant});
  }
  return list;
}

std::vector<float> weights(int64_t n) {
  nft_test::Words words(7);
  std::vector<float> w(n);
  for (int64_t i = 0; i < n; ++i)
    w[i] = i % 13 == 0 ? (i % 2 ? -0.0f : 0.0f) : i % 17 == 0 ? -1e-9f : words.signed_unit() * 0.4f;
  return w;
}

nft::Program program_of(const Case& c, const float* weight, int64_t n, float step, void* out) {
  nft::Program p{};
  p.weight = weight;
  p.n = n;
  p.step = step;
  p.weight_bits = c.weight_bits;
  p.device_bits = c.device_bits;
  p.path = c.path;
  p.mapping = c.mapping;
  p.table = c.table.data();
  p.keys = &kKeys[0][0];
  p.chips = kChips;
  p.stream = kStream;
  p.out_type = nft::OutType::kFloat32;
  p.out = out;
  return p;
}

void expect_same(const nft::Kernels& k, const Case& c, const char* what, const std::vector<float>& got,
                 const std::vector<float>& want) {
  size_t i = 0;
  while (i < want.size() && same_bits(got[i], want[i])) ++i;
  if (i == want.size()) return expect(true, "%s", what);
  expect(false, "%s, %s, mapping %d, %s: %zu is %a, not %a", k.name, c.name, c.mapping, what, i, got[i], want[i]);
}

constexpr float kPoison = 12345.0f;

void one_case(const nft::Kernels& k, const Case& c, const std::vector<float>& w, float step, const std::vector<float>& want) {
  const int64_t n = (int64_t)w.size(), chunks = nft::chunks_of(n);
  std::vector<float> out(kChips * n, kPoison);
  nft::Program p = program_of(c, w.data(), n, step, out.data());
  k.program(p, 0, chunks);
  expect_same(k, c, "the definition", out, want);
  bool plain = c.path != kPathOff;
  for (int i = 0; plain && i < 1 << (c.path == kPathDevice ? c.device_bits : c.weight_bits); ++i) plain = c.table[i] == (float)i;
  if (plain) {
    out.assign(out.size(), kPoison);
    p.plain_means = true;
    k.program(p, 0, chunks);
    expect_same(k, c, "means from codes", out, want);
  }
  if (c.constant) {
    out.assign(out.size(), kPoison);
    p.constant_table = true;
    k.program(p, 0, chunks);
    expect_same(k, c, "without a gather", out, want);
  }
  // Any cut of the chunks, in any order, empty ranges included.
  for (int64_t cut : {int64_t(1), int64_t(2), int64_t(3)}) {
    out.assign(out.size(), kPoison);
    for (int64_t begin = (chunks - 1) / cut * cut; begin >= 0; begin -= cut)
      k.program(p, begin, begin + cut < chunks ? begin + cut : chunks);
    k.program(p, chunks, chunks);
    expect_same(k, c, "cut into ranges", out, want);
  }
  // Each chip by itself.
  out.assign(out.size(), kPoison);
  for (int chip = 0; chip < kChips; ++chip) {
    nft::Program one = p;
    one.keys = &kKeys[chip][0];
    one.chips = 1;
    one.out = out.data() + chip * n;
    k.program(one, 0, chunks);
  }
  expect_same(k, c, "one chip a call", out, want);
  // From cached codes.
  std::vector<int16_t> narrow(n);
  std::vector<int32_t> wide(n);
  const int bytes = c.weight_bits <= 15 ? 2 : 4;
  void* codes = bytes == 2 ? (void*)narrow.data() : (void*)wide.data();
  k.quantize(w.data(), n, step, c.weight_bits, codes, bytes);
  p.weight = nullptr;
  p.codes = codes;
  out.assign(out.size(), kPoison);
  k.program(p, 0, chunks);
  expect_same(k, c, "from codes", out, want);
  // As bfloat16: the float32 result rounded to nearest, ties to even.
  std::vector<uint16_t> half(kChips * n, 0xffff);
  p.out_type = nft::OutType::kBFloat16;
  p.out = half.data();
  k.program(p, 0, chunks);
  std::vector<float> rounded(want.size()), stored(want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    int exponent;
    frexpf(want[i], &exponent);
    rounded[i] = ldexpf(rintf(ldexpf(want[i], 8 - exponent)), exponent - 8);
    stored[i] = float_of((uint32_t)half[i] << 16);
  }
  expect_same(k, c, "bfloat16", stored, rounded);
}

void paths() {
  const std::vector<float> w = weights(1000);
  for (const Case& c : cases()) {
    const float step = step_of(0.4f, c.weight_bits);
    std::vector<float> want;
    for (const auto& row : kKeys)
      for (size_t i = 0; i < w.size(); ++i) want.push_back(definition(c, make_key(row[0], row[1], kStream), w[i], step, i));
    nft_test::each_instruction_set([&](const nft::Kernels& k) { one_case(k, c, w, step, want); });
  }
}

// The first n weights do not depend on those after them, and nothing is written past the end: every n up to 1000.
void tails() {
  const Case c = cases()[2];
  const std::vector<float> w = weights(1000);
  nft_test::each_instruction_set([&](const nft::Kernels& k) {
    std::vector<float> whole(kChips * 1000);
    k.program(program_of(c, w.data(), 1000, 0.01f, whole.data()), 0, nft::chunks_of(1000));
    for (int64_t n = 1; n <= 1000; ++n) {
      std::vector<float> out(kChips * n + 1, kPoison), want, z(n + 1, kPoison);
      k.program(program_of(c, std::vector<float>(w.begin(), w.begin() + n).data(), n, 0.01f, out.data()), 0, nft::chunks_of(n));
      for (int chip = 0; chip < kChips; ++chip)
        want.insert(want.end(), whole.begin() + chip * 1000, whole.begin() + chip * 1000 + n);
      want.push_back(kPoison);
      expect_same(k, c, "tail", out, want);
      k.normals(kKeys[0], kStream, kSliceWeight, n, z.data());
      expect(z[n] == kPoison, "%s: normals writes past %ld", k.name, (long)n);
    }
  });
}

// Elements beyond 2^34, whose block number needs more than 32 bits. Only the chunks looked at exist: pointers are moved back.
void far_blocks() {
  const std::vector<Case> all = cases();
  for (const Case& c : {all[2], all[7]})
    for (int64_t chunk : {(int64_t(1) << 26) - 1, int64_t(1) << 26, (int64_t(0xabcd) << 26) + 77}) {
      const int64_t first = chunk * nft::kChunk, bytes = first * (int64_t)sizeof(float);
      const std::vector<float> w = weights(2 * nft::kChunk);
      std::vector<float> want;
      for (size_t i = 0; i < w.size(); ++i)
        want.push_back(definition(c, make_key(kKeys[0][0], kKeys[0][1], kStream), w[i], 0.01f, (uint64_t)first + i));
      nft_test::each_instruction_set([&](const nft::Kernels& k) {
        std::vector<float> out(w.size(), kPoison);
        nft::Program p = program_of(c, (const float*)((uintptr_t)w.data() - (uintptr_t)bytes), first + (int64_t)w.size(), 0.01f,
                                    (void*)((uintptr_t)out.data() - (uintptr_t)bytes));
        p.chips = 1;
        k.program(p, chunk, chunk + 2);
        expect_same(k, c, "blocks past 2^32", out, want);
      });
    }
}

// A zero step means an all-zero layer: every chip exactly +0, in both formats.
void zero_step() {
  const std::vector<float> w(300, -0.0f);
  for (const Case& c : cases())
    nft_test::each_instruction_set([&](const nft::Kernels& k) {
      std::vector<float> out(kChips * 300, kPoison);
      nft::Program p = program_of(c, w.data(), 300, 0.0f, out.data());
      for (auto type : {nft::OutType::kFloat32, nft::OutType::kBFloat16}) {
        p.out_type = type;
        const size_t stored = out.size() / (type == nft::OutType::kFloat32 ? 1 : 2);
        out.assign(out.size(), kPoison);
        k.program(p, 0, 1);
        k.program(p, 1, 2);
        k.program(p, 2, 2);
        std::vector<float> want(out.size(), kPoison);
        for (size_t i = 0; i < stored; ++i) want[i] = 0.0f;
        expect_same(k, c, "zero step", out, want);
      }
    });
}

// The largest |weight| of the chunks programmed, and of no others, wherever it stands; the results are the same bits.
void largest_on_the_way() {
  constexpr int64_t kCount = 2 * nft::kChunk + 77;
  for (const Case& c : cases())
    nft_test::each_instruction_set([&](const nft::Kernels& k) {
      for (int chips : {1, kChips})
        for (int64_t at : {int64_t(0), int64_t(63), nft::kChunk - 1, nft::kChunk, 2 * nft::kChunk - 5, 2 * nft::kChunk, kCount - 1}) {
          std::vector<float> w = weights(kCount);
          w[(size_t)at] = at % 2 ? 0.75f : -0.75f;
          std::vector<float> want((size_t)(chips * kCount), kPoison), out = want;
          for (float step : {0.01f, 0.0f}) {
            nft::Program p = program_of(c, w.data(), kCount, step, want.data());
            p.chips = chips;
            k.program(p, 0, 3);
            p.out = out.data();
            const int64_t its = at / nft::kChunk;
            uint32_t with = 0, without = 0;
            p.largest = &without;
            k.program(p, 0, its);
            k.program(p, its + 1, 3);
            p.largest = &with;
            k.program(p, its, its + 1);
            expect(with == bits_of(0.75f), "%s, %s: largest %08x at %ld", k.name, c.name, with, (long)at);
            expect(without < bits_of(0.41f), "%s, %s: largest %08x without %ld", k.name, c.name, without, (long)at);
            expect_same(k, c, "looking on the way", out, want);
          }
        }
    });
}

// Rounding to bfloat16 at its corners: ties, carries into the exponent and to infinity, denormals, NaN.
void bfloat16() {
  const uint32_t corners[][2] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
                                 {0x3fffffff, 0x4000}, {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
                                 {0x80000000, 0x8000}, {0x00000001, 0x0000}, {0x00008001, 0x0001}, {0x7f800001, 0x7fc0}};
  for (auto& c : corners)
    expect(to_bfloat16(float_of(c[0])) == c[1], "bfloat16 of %08x is %04x, not %04x", c[0], to_bfloat16(float_of(c[0])), c[1]);
}

}  // namespace

int main() {
  paths();
  tails();
  far_blocks();
  zero_step();
  largest_on_the_way();
  bfloat16();
  return nft_test::finish("sampler");
}
