// The CUDA kernels' per-thread work (csrc/cuda/sampler/four_weights.h), compiled for the
// host, against the scalar CPU kernels: the same bits on every path, source, format,
// tail and alignment. What only a GPU can show (launches, intrinsics) is tested there.
#include <math.h>
#include <stdio.h>

#include <string>
#include <vector>

#include "cpu/sampler/sampler.h"
#include "cuda/sampler/four_weights.h"

using namespace nft::generic;
using nft::cuda::OutType;

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (++failures <= 20) printf("FAILED %s\n", what.c_str());
}

const nft::Kernels& scalar() { return nft::kernels_named("scalar", "test"); }

// Reproducible numbers of moderate size, some exactly zero, some negative.
std::vector<float> numbers(int64_t n, uint32_t seed) {
  std::vector<float> v(n);
  for (int64_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    v[i] = i % 17 == 3 ? 0.0f : ((int32_t)seed >> 8) * 1e-8f;
  }
  return v;
}

// Memory for `elements` numbers, `offset` numbers away from a 16-byte boundary, with at least one more on either side.
template <class T>
T* aligned(std::vector<T>& v, int64_t elements, int64_t offset, T fill) {
  v.assign(elements + 32, fill);
  T* p = v.data() + 1;
  while ((uintptr_t)p % 16) ++p;
  return p + offset;
}

struct Case {
  int weight_bits, device_bits, path, mapping;
  std::vector<float> table;
  const char* name;
};

constexpr int64_t kKeys[3][2] = {{7, 0}, {-5, (int64_t(1) << 32) | 0xfffffffe}, {int64_t(1) << 40, 3}};
constexpr uint32_t kStream = 0x9abcdef0u;
constexpr int kChips = 3;

bool table_is_constant(const nft::cuda::Program& p) {
  const int levels = table_levels(p);
  bool constant = true;
  for (int i = 0; i < table_entries(p); ++i) constant = constant && is_constant(i, p.table[i], p.table[levels], levels);
  return constant;
}

// All quads of a program, with the chips split between two rows of a grid.
template <int kPath, OutType kOut>
void run(const nft::cuda::Program& p, bool constant) {
  const Table table = {p.table, table_levels(p), constant};
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t quad = 0; quad < quads_of(p.n); ++quad) program_quad<kPath, kOut>(p, table, quad, row, 2);
}

template <OutType kOut>
void run(const nft::cuda::Program& p, bool constant) {
  if (p.path == kPathOff) run<kPathOff, kOut>(p, constant);
  if (p.path == kPathFast) run<kPathFast, kOut>(p, constant);
  if (p.path == kPathDevice) run<kPathDevice, kOut>(p, constant);
}

// What the CPU programs, in float32.
std::vector<float> expected(const Case& c, const float* weight, int64_t n, float step) {
  std::vector<float> out(kChips * n);
  nft::Program p{};
  p.weight = weight;
  p.n = n;
  p.step = step;
  p.weight_bits = c.weight_bits, p.device_bits = c.device_bits;
  p.path = c.path, p.mapping = c.mapping;
  p.table = c.table.data();
  p.keys = &kKeys[0][0], p.chips = kChips, p.stream = kStream;
  p.out_type = nft::OutType::kFloat32;
  p.out = out.data();
  scalar().program(p, 0, nft::chunks_of(n));
  return out;
}

template <OutType kOut>
void compare(nft::cuda::Program p, const std::vector<float>& want, int offset, const std::string& name) {
  typedef typename Stored<kOut>::Type Out;
  const Out poison = Out(12345);
  std::vector<Out> memory;
  Out* out = aligned(memory, kChips * p.n, offset, poison);
  p.out = out;
  p.out_type = kOut;
  for (int constant = 0; constant <= (p.path != kPathOff && table_is_constant(p)); ++constant) {
    run<kOut>(p, constant != 0);
    for (int64_t i = 0; i < kChips * p.n; ++i) {
      const Out one = Stored<kOut>::from(want[i]);
      expect(memcmp(out + i, &one, sizeof one) == 0, name + ", element " + std::to_string(i));
    }
    expect(out[-1] == poison && out[kChips * p.n] == poison, name + ": writes outside its result");
  }
}

nft::cuda::Program program_of(const Case& c, int64_t n, const float* step) {
  nft::cuda::Program p{};
  p.n = n;
  p.step = step;
  p.weight_bits = c.weight_bits, p.device_bits = c.device_bits;
  p.path = c.path, p.mapping = c.mapping;
  p.table = c.table.data();
  p.keys = &kKeys[0][0], p.chips = kChips, p.stream = kStream;
  p.code_bytes = c.weight_bits <= 15 ? 2 : 4;
  return p;
}

void test_program(const Case& c, int64_t n, int offset) {
  std::vector<float> weight_memory;
  std::vector<int16_t> short_memory;
  std::vector<int32_t> int_memory;
  float* weight = aligned(weight_memory, n, offset, 0.0f);
  const std::vector<float> values = numbers(n, 1 + (uint32_t)n);
  for (int64_t i = 0; i < n; ++i) weight[i] = values[i];
  const uint32_t bits = scalar().abs_max_bits(weight, n);
  const float step = scalar().step(float_of(bits), c.weight_bits);
  const std::vector<float> want = expected(c, weight, n, step);

  nft::cuda::Program p = program_of(c, n, &step);
  const std::string name = std::string(c.name) + ", n " + std::to_string(n) + ", offset " + std::to_string(offset);
  for (bool cached : {false, true}) {
    p.weight = cached ? nullptr : weight;
    if (cached) {
      void* codes = aligned(int_memory, n, offset, 0);
      if (p.code_bytes == 2) codes = aligned(short_memory, n, offset, (int16_t)0);
      scalar().quantize(weight, n, step, c.weight_bits, codes, p.code_bytes);
      p.codes = codes;
    }
    const std::string source = name + (cached ? ", codes" : ", weights");
    compare<OutType::kFloat32>(p, want, offset, source + ", float32");
    compare<OutType::kBFloat16>(p, want, offset, source + ", bfloat16");
    compare<OutType::kFloat16>(p, want, offset, source + ", float16");
  }
}

std::vector<Case> cases() {
  std::vector<Case> list;
  const float inf = INFINITY;
  // z_max, g_min, g_max, stuck_off, stuck_any, half_mass: Gaussian; censored; clipped; stuck; truncated; three at once.
  const std::vector<float> limits[] = {
      {inf, -inf, inf, 0, 0, 0},       {0.5f, -inf, inf, 0, 0, 0},         {inf, 0, 2.5f, 0, 0, 0},
      {inf, -inf, inf, 0.1f, 0.3f, 0}, {inf, -inf, inf, 0, 0, 0.4772499f}, {inf, 0, 3, 0.2f, 0.2f, 0.34134474f}};
  const char* names[] = {"gaussian", "censored", "clipped", "stuck", "truncated", "clipped, stuck and truncated"};
  const int bits[][2] = {{8, 2}, {8, 8}, {8, 1}, {6, 3}, {15, 5}, {16, 4}, {16, 1}, {1, 1}};
  for (auto& mk : bits) {
    list.push_back({mk[0], mk[1], kPathOff, 0, {}, "off"});
    for (bool constant : {true, false}) {
      auto table = [&](int levels) {
        std::vector<float> t(2 * levels);
        for (int i = 0; i < levels; ++i) {
          t[i] = constant ? (float)i : i * 0.96f + 0.05f;
          t[levels + i] = constant ? 0.3f : 0.2f + 0.1f * (i % 5);
        }
        return t;
      };
      list.push_back({mk[0], mk[1], kPathFast, 0, table(1 << mk[0]), "fast"});
      for (int mapping : {0, 1})
        for (int l = 0; l < 6; ++l) {
          std::vector<float> t = table(1 << mk[1]);
          t.insert(t.end(), limits[l].begin(), limits[l].end());
          list.push_back({mk[0], mk[1], kPathDevice, mapping, t, names[l]});
        }
    }
  }
  return list;
}

// A zero step makes all weights +0 and all codes 0; a NaN or negative step all weights NaN, whatever table and keys.
void test_irregular_step() {
  const Case c = {8, 2, kPathFast, 0, std::vector<float>(512, 1.0f), "irregular step"};
  for (float step : {0.0f, NAN, -1.0f}) {
    const float weight[5] = {NAN, INFINITY, -1, 0, 2};
    float out[5 * kChips];
    nft::cuda::Program p = program_of(c, 5, &step);
    p.weight = weight;
    p.out = out;
    run<OutType::kFloat32>(p, false);
    for (float w : out) expect(step == 0.0f ? bits_of(w) == 0 : isnan(w), c.name);
    int16_t codes[5] = {9, 9, 9, 9, 9};
    for (int64_t quad = 0; quad < 2; ++quad) quantize_quad(weight, 5, step, 8, codes, quad);
    for (int16_t q : codes) expect(q == 0, "codes of an irregular step");
  }
}

// A row of the grid programs every second chip and leaves the others alone.
void test_row_of_chips() {
  const Case c = {8, 2, kPathFast, 0, std::vector<float>(512, 1.0f), "row of chips"};
  for (float step : {0.0f, 0.5f}) {
    const float weight[4] = {1, 2, 3, 4};
    std::vector<float> out(4 * kChips, -1e6f);
    nft::cuda::Program p = program_of(c, 4, &step);
    p.weight = weight;
    p.out = out.data();
    program_quad<kPathFast, OutType::kFloat32>(p, {p.table, table_levels(p), false}, 0, 1, 2);
    for (int i = 0; i < 4 * kChips; ++i) expect((out[i] == -1e6f) == (i / 4 != 1), c.name);
  }
}

void test_quantize_and_step(int64_t n, int offset) {
  std::vector<float> memory;
  float* weight = aligned(memory, n, offset, 0.0f);
  const std::vector<float> values = numbers(n, 99);
  for (int64_t i = 0; i < n; ++i) weight[i] = values[i];
  uint32_t bits = 0;
  for (int64_t quad = 0; quad < quads_of(n); ++quad) {
    const uint32_t part = abs_max_of_quad(weight, n, quad);
    bits = part > bits ? part : bits;
  }
  expect(bits == scalar().abs_max_bits(weight, n), "largest magnitude");
  for (int weight_bits : {1, 8, 15, 16}) {
    const float step = scalar().step(float_of(bits), weight_bits);
    expect(bits_of(step_or_nan(bits, weight_bits)) == bits_of(step), "step");
    std::vector<int32_t> wide, want(n);
    std::vector<int16_t> narrow;
    int32_t* q32 = aligned(wide, n, offset, 12345);
    int16_t* q16 = aligned(narrow, n, offset, (int16_t)12345);
    scalar().quantize(weight, n, step, weight_bits, want.data(), 4);
    for (int64_t quad = 0; quad < quads_of(n); ++quad) {
      quantize_quad(weight, n, step, weight_bits, q32, quad);
      if (weight_bits <= 15) quantize_quad(weight, n, step, weight_bits, q16, quad);
    }
    for (int64_t i = 0; i < n; ++i)
      expect(q32[i] == want[i] && (weight_bits > 15 || q16[i] == want[i]), "code " + std::to_string(i));
    expect(q32[-1] == 12345 && q32[n] == 12345 && q16[-1] == 12345 && q16[n] == 12345, "codes outside the result");
  }
  for (float bad : {INFINITY, -INFINITY, NAN}) {
    weight[n / 2] = bad;
    bits = abs_max_of_quad(weight, n, n / 2 / 4);
    expect(isnan(step_or_nan(bits, 8)), "step of a weight that is not finite");
  }
}

// Tensors of more than 2^34 weights: the quad's upper bits reach the counter.
void test_counter_of_large_quads() {
  const Key key = make_key(-3, (int64_t(2) << 32) | 5, kStream);
  for (int64_t quad : {int64_t(0), int64_t(0xffffffff), int64_t(1) << 32, (int64_t(0xabcd) << 32) | 77}) {
    const uint32_t counter[4] = {(uint32_t)quad, (uint32_t)(quad >> 32) | 9u << 16 | 2u << 24, kStream, 5};
    const uint32_t seed[2] = {0xfffffffdu, 0xffffffffu};
    uint32_t want[4], got[4];
    scalar().philox(counter, seed, 1, want);
    quad_words(key, 9, quad, got);
    expect(memcmp(want, got, sizeof want) == 0, "words of quad " + std::to_string(quad));
  }
}

}  // namespace

int main() {
  for (const Case& c : cases())
    for (int64_t n : {1, 2, 3, 4, 5, 255, 256, 1027})
      for (int offset : {0, 1, 2})
        if (n < 1000 || (c.weight_bits == 8 && offset < 2)) test_program(c, n, offset);
  for (int64_t n : {1, 4, 6, 257})
    for (int offset : {0, 1, 2, 3}) test_quantize_and_step(n, offset);
  test_irregular_step();
  test_row_of_chips();
  test_counter_of_large_quads();
  if (failures)
    printf("%d checks failed\n", failures);
  else
    printf("cuda_block: all checks passed\n");
  return failures != 0;
}
