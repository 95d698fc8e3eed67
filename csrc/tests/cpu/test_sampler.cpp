// The sampler against its definition: every path on every instruction set gives the bits that csrc/core gives one
// weight at a time, however the work is cut, however many chips share a call, and wherever the weights come from.
#include "tests/cpu/sampler_case.h"

namespace {

void one_case(const nft::Kernels& k, const Case& c, const std::vector<float>& w, float step,
              const std::vector<float>& want) {
  const int64_t n = (int64_t)w.size(), chunks = nft::chunks_of(n);
  std::vector<float> out(kChips * n, kPoison);
  nft::Program p = program_of(c, w.data(), n, step, out.data());
  k.program(p, 0, chunks);
  expect_same(k, c, "the definition", out, want);
  bool plain = c.path != kPathOff;
  for (int i = 0; plain && i < 1 << (c.path == kPathDevice ? c.device_bits : c.weight_bits); ++i)
    plain = c.table[i] == (float)i;
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
  expect_same(k, c, "one chip per call", out, want);
  // From given codes.
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
      for (size_t i = 0; i < w.size(); ++i)
        want.push_back(definition(c, make_key(row[0], row[1], kStream), w[i], step, i));
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
      k.program(program_of(c, std::vector<float>(w.begin(), w.begin() + n).data(), n, 0.01f, out.data()), 0,
                nft::chunks_of(n));
      for (int chip = 0; chip < kChips; ++chip)
        want.insert(want.end(), whole.begin() + chip * 1000, whole.begin() + chip * 1000 + n);
      want.push_back(kPoison);
      expect_same(k, c, "tail", out, want);
      k.normals(kKeys[0], kStream, kSliceWeight, n, z.data());
      expect(z[n] == kPoison, "%s: normals writes past %ld", k.name, (long)n);
    }
  });
}

// Elements beyond 2^34, whose quad number needs more than 32
// bits. Only the chunks looked at exist: pointers are moved back.
void far_quads() {
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
        nft::Program p =
            program_of(c, (const float*)((uintptr_t)w.data() - (uintptr_t)bytes), first + (int64_t)w.size(), 0.01f,
                       (void*)((uintptr_t)out.data() - (uintptr_t)bytes));
        p.chips = 1;
        k.program(p, chunk, chunk + 2);
        expect_same(k, c, "quads past 2^32", out, want);
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
void abs_max_on_the_way() {
  constexpr int64_t kCount = 2 * nft::kChunk + 77;
  for (const Case& c : cases())
    nft_test::each_instruction_set([&](const nft::Kernels& k) {
      for (int chips : {1, kChips})
        for (int64_t at : {int64_t(0), int64_t(63), nft::kChunk - 1, nft::kChunk, 2 * nft::kChunk - 5, 2 * nft::kChunk,
                           kCount - 1}) {
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
            p.abs_max = &without;
            k.program(p, 0, its);
            k.program(p, its + 1, 3);
            p.abs_max = &with;
            k.program(p, its, its + 1);
            expect(with == bits_of(0.75f), "%s, %s: largest %08x at %ld", k.name, c.name, with, (long)at);
            expect(without < bits_of(0.41f), "%s, %s: largest %08x without %ld", k.name, c.name, without, (long)at);
            expect_same(k, c, "looking on the way", out, want);
          }
        }
    });
}

// The float32 value of a 16-bit weight, from its definition.
float value_of(uint16_t bits, nft::WeightType type) {
  if (type == nft::WeightType::kBFloat16) return float_of((uint32_t)bits << 16);
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                         : ldexpf((float)fraction, -24);
  return bits >> 15 ? -magnitude : magnitude;
}

// Every 16-bit weight is read as its float32 value, on every path, by chunks and at a short end, for one chip and many.
void narrow_weights() {
  nft_test::each_instruction_set([&](const nft::Kernels& k) {
    for (nft::WeightType type : {nft::WeightType::kBFloat16, nft::WeightType::kFloat16}) {
      std::vector<uint16_t> narrow;
      std::vector<float> wide;
      for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const uint16_t one = (uint16_t)bits;
        const float value = value_of(one, type);
        const uint32_t found = k.abs_max_bits({&one, type}, 1);
        const bool same = isnan(value) ? found > 0x7f800000u : found == (bits_of(value) & 0x7fffffffu);
        expect(same, "%s, type %d: |%04x| has the bits %08x", k.name, (int)type, bits, found);
        if (!isfinite(value)) continue;
        narrow.push_back(one);
        wide.push_back(value);
      }
      const int64_t n = (int64_t)wide.size() - 77;
      const nft::Weights weights(narrow.data(), type);
      for (const Case& c : cases()) {
        if (c.weight_bits != 8) continue;
        for (int chips : {1, kChips}) {
          std::vector<float> want((size_t)(chips * n), kPoison), out = want;
          nft::Program p = program_of(c, wide.data(), n, 0.01f, want.data());
          p.chips = chips;
          k.program(p, 0, nft::chunks_of(n));
          p.weight = weights;
          p.out = out.data();
          k.program(p, 0, nft::chunks_of(n));
          expect_same(k, c, "16-bit weights", out, want);
        }
      }
      std::vector<int16_t> want((size_t)n), codes((size_t)n, -9);
      k.quantize(wide.data(), n, 0.01f, 8, want.data(), 2);
      k.quantize(weights, n, 0.01f, 8, codes.data(), 2);
      expect(codes == want, "%s, type %d: other codes", k.name, (int)type);
    }
  });
}

// Rounding to bfloat16 at its corners: ties, carries into the exponent and to infinity, denormals, NaN.
void bfloat16() {
  const uint32_t corners[][2] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81},
                                 {0x3f818000, 0x3f82}, {0x3fffffff, 0x4000}, {0x7f7fffff, 0x7f80},
                                 {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x80000000, 0x8000},
                                 {0x00000001, 0x0000}, {0x00008001, 0x0001}, {0x7f800001, 0x7fc0}};
  for (auto& c : corners)
    expect(to_bfloat16(float_of(c[0])) == c[1], "bfloat16 of %08x is %04x, not %04x", c[0], to_bfloat16(float_of(c[0])),
           c[1]);
}

}  // namespace

int main() {
  paths();
  tails();
  far_quads();
  zero_step();
  abs_max_on_the_way();
  narrow_weights();
  bfloat16();
  return nft_test::exit_code("sampler");
}
