// What the sampler must give: its definition by csrc/core, one
// weight at a time, and the cases in which the tests compare both.
#pragma once

#include <math.h>

#include <vector>

#include "core/conductance.h"
#include "tests/check.h"

using namespace nft::generic;
using nft_test::expect;
using nft_test::same_bits;

namespace {

constexpr int64_t kKeys[3][2] = {
    {0x0123456789abcdef, 5}, {-7, (int64_t(1) << 32) | 0xfffffffe}, {42, (int64_t(2) << 32)}};
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
  for (int i = 0; i < levels; ++i)
    table.push_back(constant ? 0.3f : 0.1f + 0.4f * (float)((i * 5) % levels) / (float)levels);
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
    for (int mapping : {0, 1})
      list.push_back({names[i], 6, 3, kPathDevice, mapping, table_of(8, constant, *limits[i]), constant});
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

}  // namespace
