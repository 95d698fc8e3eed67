// Division by the step as one multiplication and one fused multiply-add, if these are proven to give the same codes.
//
// Divisions wait for the processor's only divider, which the square roots of Box-Muller need too.
// With 1/s as the sum of two floats, high and low, the quotient |W| high + |W| low is the division's,
// except rarely in the last bit. A code only depends on which side of k + 1/2 the quotient lies. Both
// quotients grow with |W|. So the codes agree for every weight if they agree for the few weights
// around each change from one code to the next: a few hundred comparisons per step, a microsecond.
//
// A step of few weights cannot pay for that. There the quotient q = |W| high + |W| low is corrected: the remainder
// |W| - q s is exact, and q + remainder * high is the division's result, always (docs/design/decisions/cpu.md).
#pragma once

#include "core/quantize.h"
#include "cpu/sampler/sampler.h"

namespace nft {
namespace NFT_ISA {
namespace {

#if defined(__FMA__) || defined(__AVX512F__)

NFT_FN float quotient_by(float magnitude, Reciprocal r) {
  return __builtin_fmaf(magnitude, r.high, mul(magnitude, r.low));
}

// To the nearest integer, ties to even: one instruction.
NFT_FN float rounded(float quotient) { return __builtin_rintf(quotient); }

// A quotient that is off by less than its last bit, rounded as the division rounds it. `high`: 1/s, rounded.
NFT_FN float corrected_quotient(float quotient, float magnitude, float step, float high) {
  return __builtin_fmaf(__builtin_fmaf(-quotient, step, magnitude), high, quotient);
}

// The division's result. `r`: from exact_reciprocal_of.
NFT_FN float exact_quotient_by(float magnitude, float step, Reciprocal r) {
  return corrected_quotient(quotient_by(magnitude, r), magnitude, step, r.high);
}

// The same with the first part of the reciprocal only.
NFT_FN float exact_quotient_by(float magnitude, float step, float high) {
  const float close = corrected_quotient(mul(magnitude, high), magnitude, step, high);
  return corrected_quotient(close, magnitude, step, high);
}

// The step's reciprocal for exact_quotient_by; none where a product could leave the range of numbers.
__attribute__((noinline)) Reciprocal exact_reciprocal_of(float step) {
  if (!(step > 0x1p-60f && step < 0x1p60f)) return {};
  const float high = 1.0f / step;
  return {high, __builtin_fmaf(-high, step, 1.0f) * high};
}

// The step's reciprocal; none if the codes are not proven to agree.
__attribute__((noinline)) Reciprocal reciprocal_of(float step, int weight_bits) {
  constexpr int kMostBits = 8, kCodes = 1 << kMostBits;
  constexpr int kAround = 3;  // s (k + 1/2), where codes change, is computed to one unit in the last place
  if (weight_bits > kMostBits || !(step > 0x1p-24f && step < 0x1p24f)) return {};  // so that no |W| low overflows
  Reciprocal r;
  r.high = 1.0f / step;
  r.low = (float)((1.0 - (double)step * r.high) / step);  // the product is exact in double
  const float top = from_int((1 << weight_bits) - 1);
  int32_t wrong = 0;
  for (int i = 0; i < (2 * kAround + 1) * kCodes; ++i) {
    const int off = i / kCodes - kAround;
    const float lower = least(sub(top, 1.0f), from_int(i % kCodes));  // codes beyond `top` repeat its own
    const float weight = float_of(bits_of(mul(add(lower, 0.5f), step)) + (uint32_t)off);
    const float divided = round_quotient(quotient_of(weight, step), top),
                multiplied = round_quotient(quotient_by(weight, r), top);
    wrong |= (int32_t)(divided != multiplied) | ((int32_t)(off == -kAround) & (int32_t)(divided != lower)) |
             ((int32_t)(off == kAround) & (int32_t)(divided != add(lower, 1.0f)));
  }
  return wrong ? Reciprocal{} : r;
}

#else

// Without fused multiply-adds the division is as fast.
NFT_FN float quotient_by(float magnitude, Reciprocal) { return magnitude; }
NFT_FN float exact_quotient_by(float magnitude, float step, Reciprocal) { return div(magnitude, step); }
NFT_FN float exact_quotient_by(float magnitude, float step, float) { return div(magnitude, step); }
NFT_FN float rounded(float quotient) { return quotient; }
Reciprocal exact_reciprocal_of(float) { return {}; }
Reciprocal reciprocal_of(float, int) { return {}; }

#endif

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
