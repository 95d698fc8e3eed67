// The M-bit quantizer (Eq. 4): step s = fl(max|W| / (2^M - 1)),
// code q = rint(fl(|W| / s)), ties to even, plus a sign bit.
//
// A stored code keeps the sign as the ones' complement (code = q or ~q), so that a small negative weight, whose code is
// zero, stays on the negative crossbar. int16 for M <= 15, int32 for M = 16.
#pragma once

#include "core/macros.h"

namespace nft {
namespace NFT_ISA {

NFT_FN float step_of(float abs_max, int weight_bits) { return div(abs_max, from_int((1 << weight_bits) - 1)); }

// A zero step (an all-zero weight, or one so small that the step underflows) means: the result is exactly zero.
// A NaN step (CUDA, non-finite weights) is not zero and makes every result NaN.
NFT_FN bool step_is_zero(float step) { return step == 0.0f; }

// Code of one weight as a float in 0..top, top = 2^M - 1. The sum with 2^23 rounds to the nearest integer, ties to
// even, on every machine and in every vector width. Quotients are below 2^22, since max|W| bounds W. With a step from
// the cache (cpu/torch/abs_max_cache.h) a quotient may be anything; its code is in range even for NaN.
NFT_FN float magnitude_of(float weight) { return float_of(bits_of(weight) & 0x7fffffffu); }
NFT_FN float quotient_of(float weight, float step) { return div(magnitude_of(weight), step); }
NFT_FN float round_quotient(float quotient, float top) {
  return sub(add(least(top, quotient), 8388608.0f), 8388608.0f);
}
NFT_FN float code_of(float weight, float step, float top) { return round_quotient(quotient_of(weight, step), top); }

// A sign is a word in which only the top bit counts. Both zeros are positive: -0 + 0 is +0.
NFT_FN uint32_t sign_of(float weight) { return bits_of(add(weight, 0.0f)); }

NFT_FN int32_t pack_code(float code, uint32_t sign) {
  const int32_t q = to_int(code);
  return sign >> 31 ? ~q : q;
}
NFT_FN int32_t code_magnitude(int32_t packed) { return packed < 0 ? ~packed : packed; }
NFT_FN uint32_t code_sign(int32_t packed) { return (uint32_t)packed; }

}  // namespace NFT_ISA
}  // namespace nft
