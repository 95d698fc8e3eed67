// The quantizer of Eq. 4 on every instruction set: step, ties, signs, all widths, and the ends of the float32 range.
#include <math.h>

#include <vector>

#include "core/quantize.h"
#include "tests/check.h"

using namespace nft::generic;
using nft_test::expect;

namespace {

std::vector<int32_t> codes_of(const nft::Kernels& k, const std::vector<float>& w, float step, int bits, int bytes = 4) {
  std::vector<int32_t> wide(w.size());
  if (bytes == 4) {
    k.quantize(w.data(), (int64_t)w.size(), step, bits, wide.data(), 4);
    return wide;
  }
  std::vector<int16_t> narrow(w.size());
  k.quantize(w.data(), (int64_t)w.size(), step, bits, narrow.data(), 2);
  for (size_t i = 0; i < w.size(); ++i) wide[i] = narrow[i];
  return wide;
}

float abs_max(const nft::Kernels& k, const std::vector<float>& w) {
  return float_of(k.abs_max_bits(w.data(), (int64_t)w.size()));
}

void expect_codes(const nft::Kernels& k, const char* what, const std::vector<float>& w, float step, int bits,
                  const std::vector<int32_t>& wanted) {
  for (int bytes : {2, 4}) {
    if (bytes == 2 && bits > 15) continue;
    const std::vector<int32_t> got = codes_of(k, w, step, bits, bytes);
    for (size_t i = 0; i < w.size(); ++i)
      expect(got[i] == wanted[i], "%s, %s, %d-byte codes: weight %a has code %d, not %d", k.name, what, bytes, w[i],
             got[i], wanted[i]);
  }
}

void ties_go_to_even(const nft::Kernels& k) {
  expect_codes(k, "ties", {0.5f, 1.5f, 2.5f, 3.5f, 126.5f, 127.5f, 253.5f, 254.5f, 255.0f, -0.5f, -1.5f, -2.5f}, 1.0f,
               8, {0, 2, 2, 4, 126, 128, 254, 254, 255, ~0, ~2, ~2});
  expect_codes(k, "just off ties", {nextafterf(0.5f, 1), nextafterf(1.5f, 0), nextafterf(2.5f, 3)}, 1.0f, 8, {1, 1, 3});
}

// Weights that are not finite, or far above the step they are divided by: the largest code, in range of any table.
void codes_stay_in_range(const nft::Kernels& k) {
  for (int bits : {1, 8, 15, 16}) {
    const int32_t top = (1 << bits) - 1;
    expect_codes(k, "not finite", {INFINITY, -INFINITY, 3e38f, -3e38f}, 1e-6f, bits, {top, ~top, top, ~top});
    for (int32_t code : codes_of(k, {NAN, -NAN}, 1e-6f, bits, 4))
      expect(code == top || code == ~top, "%s: NaN has the %d-bit code %d", k.name, bits, code);
  }
}

// q = rint(fl(|W| / s)): the quotient is rounded to float32 first, and it is a quotient, not a product with 1 / s. The
// weights here tell these readings apart.
void the_quotient_is_rounded_first(const nft::Kernels& k) {
  std::vector<float> telling;
  std::vector<int32_t> wanted;
  int against_exact = 0, against_reciprocal = 0;
  nft_test::Words words(4);
  while (against_exact < 20 || against_reciprocal < 20) {
    const float step = 0.001f + fabsf(words.signed_unit()) * 0.01f;
    const float w = ((float)(words.next() % 250u) + 0.5f) * step;
    const int32_t q = (int32_t)rintf(w / step);
    const bool exact_differs = q != (int32_t)rint((double)w / step),
               reciprocal_differs = q != (int32_t)rintf(w * (1.0f / step));
    against_exact += exact_differs;
    against_reciprocal += reciprocal_differs;
    if (exact_differs || reciprocal_differs) expect_codes(k, "rounded quotient", {w, -w}, step, 8, {q, ~q});
  }
}

void zeros_and_signs(const nft::Kernels& k) {
  const float tiny = 1e-6f, least = 1e-45f;
  expect_codes(k, "zeros", {0.0f, -0.0f, tiny, -tiny, least, -least}, 1.0f, 8, {0, 0, 0, ~0, 0, ~0});
  for (int32_t packed : {0, ~0, 7, ~7, 65535, ~65535}) {
    const bool negative = packed < 0;
    expect(code_magnitude(packed) == (negative ? -packed - 1 : packed), "code_magnitude(%d)", packed);
    expect(code_sign(packed) >> 31 == (negative ? 1u : 0u), "code_sign(%d)", packed);
    expect(pack_code((float)code_magnitude(packed), code_sign(packed)) == packed, "pack_code does not undo %d", packed);
  }
}

// Random weights at every width: the codes are those of the formula, the largest weight has the top code, and W_d lies
// within half a step (and the rounding of the quotient) of W.
void all_widths(const nft::Kernels& k) {
  nft_test::Words words(5);
  for (int bits = 1; bits <= 16; ++bits) {
    const int32_t top = (1 << bits) - 1;
    std::vector<float> w(1003);
    for (float& v : w) v = words.signed_unit() * 0.37f;
    w[501] = -0.371f;
    const float largest = abs_max(k, w), step = k.step(largest, bits);
    expect(largest == 0.371f, "%s: largest |weight| %a", k.name, largest);
    expect(step == 0.371f / (float)top, "%s, M = %d: step %a", k.name, bits, step);
    std::vector<int32_t> wanted(w.size());
    for (size_t i = 0; i < w.size(); ++i) {
      const int32_t q = (int32_t)fminf(rintf(fabsf(w[i]) / step), (float)top);
      wanted[i] = w[i] < 0 ? ~q : q;
      const double error = fabs(fabs(w[i]) - (double)q * step);
      expect(error <= 0.5001 * step + 1e-7 * largest, "M = %d: %a lies far from code %d", bits, w[i], q);
    }
    expect(wanted[501] == ~top, "M = %d: the largest weight has code %d", bits, ~wanted[501]);
    expect_codes(k, "random weights", w, step, bits, wanted);
  }
}

void all_zero(const nft::Kernels& k) {
  const std::vector<float> w = {0.0f, -0.0f, 0.0f};
  const float step = k.step(abs_max(k, w), 8);
  expect(nft_test::same_bits(step, 0.0f), "%s: step %a of an all-zero weight", k.name, step);
  expect_codes(k, "all zero", w, step, 8, {0, 0, 0});
}

// Weights so small that the step is denormal, hence coarse: codes still end at the top. Smaller still, the step is 0
// and the layer counts as all zero.
void denormal_steps(const nft::Kernels& k) {
  for (float scale : {1e-36f, 1e-38f, 1e-40f, 2e-43f, 1e-45f}) {
    for (int bits : {1, 2, 8, 15, 16}) {
      std::vector<float> w(101);
      for (int i = 0; i <= 100; ++i) w[i] = scale * (float)(i - 50) / 50.0f;
      const float step = k.step(abs_max(k, w), bits), top = (float)((1 << bits) - 1);
      expect(nft_test::same_bits(step, abs_max(k, w) / top), "%s: step %a at scale %g, M = %d", k.name, step, scale,
             bits);
      std::vector<int32_t> wanted(w.size(), 0);
      for (size_t i = 0; i < w.size() && step > 0; ++i) {
        const int32_t q = (int32_t)fminf(rintf(fabsf(w[i]) / step), top);
        wanted[i] = w[i] < 0 ? ~q : q;
      }
      expect_codes(k, "denormal step", w, step, bits, wanted);
    }
  }
  const float least = 1.401298464e-45f;
  expect(least > 0 && k.step(100 * least, 8) == 0.0f && k.step(200 * least, 8) == least,
         "%s: steps below the least float", k.name);
}

// The largest |weight| as bits, at any length and place: NaN above infinity above every number.
void abs_max_bits(const nft::Kernels& k) {
  expect(k.abs_max_bits(nullptr, 0) == 0, "%s: largest of nothing", k.name);
  for (int n : {1, 2, 15, 16, 17, 63, 64, 65, 257}) {
    for (int at = 0; at < n; at += n > 20 ? 7 : 1) {
      std::vector<float> w(n, -0.25f);
      w[at] = -0.75f;
      expect(abs_max(k, w) == 0.75f, "%s: largest of %d, at %d", k.name, n, at);
      w[at] = -INFINITY;
      expect(k.abs_max_bits(w.data(), n) == 0x7f800000u, "%s: infinity at %d of %d", k.name, at, n);
      w[0] = INFINITY;
      w[at] = -NAN;
      expect(k.abs_max_bits(w.data(), n) > 0x7f800000u, "%s: NaN at %d of %d", k.name, at, n);
    }
  }
}

}  // namespace

int main() {
  nft_test::each_instruction_set([](const nft::Kernels& k) {
    ties_go_to_even(k);
    codes_stay_in_range(k);
    the_quotient_is_rounded_first(k);
    zeros_and_signs(k);
    all_widths(k);
    all_zero(k);
    denormal_steps(k);
    abs_max_bits(k);
  });
  return nft_test::exit_code("quantize");
}
