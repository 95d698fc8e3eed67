// Codes by multiplication (cpu/sampler/step_reciprocal.h): given a step's reciprocal, the sampler gives every weight
// the code of the division, hence the same bits.
#include <math.h>

#include <vector>

#include "core/conductance.h"
#include "tests/check.h"

using namespace nft::generic;
using nft_test::expect;

namespace {

constexpr int64_t kKey[2] = {0x0123456789abcdef, 5};

struct Table {
  std::vector<float> numbers;
  bool plain_means, constant;
};

// Means are the codes or not; deviations are `std`, equal or not.
Table table_of(int weight_bits, float std, bool plain, bool equal) {
  const int levels = 1 << weight_bits;
  Table t{{}, plain, plain && equal};
  for (int q = 0; q < levels; ++q) t.numbers.push_back(plain ? (float)q : (float)q * 0.97f + 0.05f);
  for (int q = 0; q < levels; ++q) t.numbers.push_back(equal ? std : std * (float)(q * 5 % levels) / (float)levels);
  return t;
}

// One chip's weights, by division or with `reciprocal`; `largest` is raised. `bounded`: as Program's.
std::vector<float> programmed_weights(const nft::Kernels& k, const Table& t, const std::vector<float>& w, float step,
                                      int weight_bits, nft::Reciprocal reciprocal, uint32_t* largest = nullptr,
                                      bool bounded = false) {
  std::vector<float> out(w.size());
  nft::Program p{};
  p.weight = w.data();
  p.n = (int64_t)w.size();
  p.step = step;
  p.reciprocal = reciprocal;
  p.bounded = bounded;
  p.weight_bits = weight_bits;
  p.device_bits = 1;
  p.path = kPathFast;
  p.table = t.numbers.data();
  p.plain_means = t.plain_means;
  p.constant_table = t.constant;
  p.keys = kKey;
  p.chips = 1;
  p.out = out.data();
  p.abs_max = largest;
  k.program(p, 0, nft::chunks_of(p.n));
  return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Without noise a programmed weight tells its code: sign * step * q.
void expect_same_codes(const nft::Kernels& k, const Table& noiseless, const std::vector<float>& w, float step,
                       int weight_bits, nft::Reciprocal r) {
  expect(same(programmed_weights(k, noiseless, w, step, weight_bits, r),
              programmed_weights(k, noiseless, w, step, weight_bits, {})),
         "%s: codes by product differ from those by division, step %a, %d bits", k.name, step, weight_bits);
  std::vector<float> inside = w;
  for (float& weight : inside)
    if (!(fabsf(weight) <= (float)((1 << weight_bits) - 1) * step)) weight = 0.0f;
  expect(same(programmed_weights(k, noiseless, inside, step, weight_bits, r, nullptr, true),
              programmed_weights(k, noiseless, inside, step, weight_bits, {})),
         "%s: bounded codes differ from those by division, step %a, %d bits", k.name, step, weight_bits);
}

bool given(nft::Reciprocal r) { return r.high != 0; }

float random_step(nft_test::Words& words, int spread) {
  return ldexpf(1.0f + (float)(words.next() >> 9) * 0x1p-23f, (int)(words.next() % (2 * spread)) - spread);
}

// Every float32 whose quotient lies between 1/4 and 2^M, of both signs.
void every_weight() {
  nft_test::Words words(3);
  nft_test::each_instruction_set([&](const nft::Kernels& k) {
    const float steps[] = {0x1.fffffep-9f, 0x1.000002p-9f, random_step(words, 12)};
    const Table noiseless = table_of(8, 0.0f, true, true);
    for (float step : steps) {
      const nft::Reciprocal r = k.reciprocal(step, 8);
      if (!given(r)) continue;
      std::vector<float> w;
      const uint32_t last = bits_of(256.0f * step);
      for (uint32_t u = bits_of(0.25f * step); u < last; ++u) {
        w.push_back(float_of(u ^ u << 31));
        if (w.size() < (1 << 16) && u + 1 < last) continue;
        expect_same_codes(k, noiseless, w, step, 8, r);
        w.clear();
      }
    }
  });
}

// For many steps, every width: the weights around all of s (k + 1/2), zeros, weights far too small and far too large.
void many_steps() {
  constexpr int kSteps = 2000, kAround = 6;
  nft_test::each_instruction_set([&](const nft::Kernels& k) {
    nft_test::Words words(11);
    int served = 0;
    for (int i = 0; i < kSteps; ++i) {
      const int weight_bits = 1 + i % 8;
      const float step = random_step(words, i % 2 ? 8 : 24);
      const nft::Reciprocal r = k.reciprocal(step, weight_bits);
      if (!given(r)) continue;
      ++served;
      std::vector<float> w = {0.0f,  -0.0f,          0x1p-149f, -0x1p-126f,      step,
                              -step, 1000.0f * step, 3e38f,     (float)INFINITY, (float)NAN};
      for (int q = 0; q < 1 << weight_bits; ++q)
        for (int off = -kAround; off <= kAround; ++off)
          w.push_back(float_of(bits_of(((float)q + 0.5f) * step) + (uint32_t)off) * (q % 3 ? 1.0f : -1.0f));
      w.resize((w.size() + nft::kChunk - 1) / nft::kChunk * nft::kChunk);  // short chunks divide
      expect_same_codes(k, table_of(weight_bits, 0.0f, true, true), w, step, weight_bits, r);
    }
    const bool multiplies = given(k.reciprocal(0.01f, 8));
    expect(multiplies || strcmp(k.name, "scalar") == 0, "%s: no reciprocal of 0.01", k.name);
    expect(!multiplies || served > kSteps * 99 / 100, "%s: %d of %d steps have a reciprocal", k.name, served, kSteps);
  });
}

// Noise, tables of every kind, a short last chunk, and the largest |weight| seen on the way.
void programs() {
  nft_test::Words words(7);
  std::vector<float> w(20 * nft::kChunk + 77);
  for (size_t i = 0; i < w.size(); ++i) w[i] = i % 13 ? words.signed_unit() * 0.4f : i % 2 ? -0.0f : -1e-9f;
  w[3 * nft::kChunk + 5] = -0.75f;
  nft_test::each_instruction_set([&](const nft::Kernels& k) {
    for (int kind = 0; kind < 4; ++kind) {
      const Table t = table_of(8, 0.3f, kind & 1, kind & 2);
      const float step = k.step(0.75f, 8);
      uint32_t divided = 0, multiplied = 0;
      const std::vector<float> want = programmed_weights(k, t, w, step, 8, {}, &divided);
      expect(same(programmed_weights(k, t, w, step, 8, k.reciprocal(step, 8), &multiplied), want), "%s: table %d",
             k.name, kind);
      uint32_t bounded = 0;
      expect(
          same(programmed_weights(k, t, w, step, 8, k.reciprocal(step, 8), &bounded, true), want) && bounded == divided,
          "%s: table %d, bounded codes", k.name, kind);
      expect(divided == bits_of(0.75f) && multiplied == divided, "%s: largest %08x, %08x", k.name, divided, multiplied);
    }
  });
}

// No reciprocal where its parts, or those of a product, could leave float32's range, nor for codes of more than 8 bits.
void refused() {
  nft_test::each_instruction_set([&](const nft::Kernels& k) {
    for (float step : {0.0f, -0.01f, 0x1p-149f, 0x1p-126f, 0x1p-24f, 0x1p24f, 3e38f, (float)INFINITY, (float)NAN})
      expect(!given(k.reciprocal(step, 8)), "%s: a reciprocal of %a", k.name, step);
    for (int weight_bits : {9, 12, 16})
      expect(!given(k.reciprocal(0.01f, weight_bits)), "%s: %d bits", k.name, weight_bits);
  });
}

}  // namespace

int main() {
  every_weight();
  many_steps();
  programs();
  refused();
  return nft_test::exit_code("step_reciprocal");
}
