// Standard normals from random words, bit for bit the same on every instruction set, on CUDA and in NumPy.
//
// Box and Muller: two independent uniforms are the squared radius and the angle of a point of
// the two-dimensional normal distribution, so they give two independent normals exactly; no
// rejection, hence a fixed cost and a fixed place in the random sequence. The radius uniform
// never is 0 (it is at least 2^-32), so log(0) cannot happen and |z| <= sqrt(64 ln 2) = 6.66.
//
// The polynomials are our own (csrc/tests/core/fit_polynomials.py). Their degree is the least that adds only about half
// a unit to the rounding errors. Maximal errors against the true function of the exact argument, in units of the last
// place of the result; csrc/tests/core/test_normal.cpp asserts them over every argument:
//   half_radius_squared  every float32 u in [2^-32, 1]  1.23 ULP
//   half_circle          every angle, both results      1.57 ULP
//
// The radius is kept in halves, and the circle has radius two. docs/reference/noise.md writes the same numbers without:
// a power of two changes no rounding, and this one lets f below enter the logarithm as itself.
//
// Word and Float are uint32_t and float, or on the CPU several vectors of them at once (cpu/simd/vectors.h).
#pragma once

#include "core/macros.h"

namespace nft {
namespace NFT_ISA {

// Half a uniform u in [2^-32, 1], u = (x >> 1) * 2^-31 + 2^-32 in float32. The half is added before the (exact)
// scaling, which is a subtraction from the exponent.
template <class Word>
NFT_FN auto half_uniform(Word x) {
  return float_of(bits_of(add(from_int(as_signed(x >> 1)), 0.5f)) - (32u << 23));
}

// A uniform in [0, 1) with 24 bits, exact in float32: for comparisons with a probability.
NFT_FN float uniform_24(uint32_t x) { return mul(from_int((int32_t)(x >> 8)), 5.9604644775390625e-08f /* 2^-24 */); }

// (r/2)^2 = -ln(u) / 2 from u/2, for u in [2^-32, 1]: u = 2^e (1 + 2f), 1 + 2f in [sqrt(1/2), sqrt(2)), and
// -ln(1 + 2f) / 2 = -f + f^2 (1 + f P(f)). The fit's coefficients (of f there) times powers of two.
template <class Float>
NFT_FN Float half_radius_squared(Float half_u) {
  const auto exponent = (bits_of(half_u) - 0x3eb504f3u) & 0xff800000u;  // e, where floats keep it
  const Float f = sub(float_of(bits_of(half_u) - exponent), 0.5f);
  Float p = add(mul(f, -0x1.645e52p+4f), 0x1.242fd0p+4f);
  p = add(mul(p, f), -0x1.3172fap+3f);
  p = add(mul(p, f), 0x1.5382a4p+2f);
  p = add(mul(p, f), -0x1.98d824p+1f);
  p = add(mul(p, f), 0x1.000380p+1f);
  p = add(mul(p, f), -0x1.5556d8p+0f);
  p = add(mul(p, f), 1.0f);
  p = sub(mul(p, mul(f, f)), f);
  return sub(p, mul(from_int(as_signed(exponent)), 0x1.62e430p-25f));  // e ln 2 / 2
}

// Twice cosine and sine of a uniform angle on half a circle: bits 0..22 of x are the angle pi/2 * t on a quarter, t in
// [-1/2, 1/2) and exact, and bit 30 mirrors it into the other quarter.
template <class Word, class Float>
NFT_FN void half_circle(Word x, Float& cosine, Float& sine) {
  const Float t = sub(one_and_fraction(x), 1.5f);
  const Float t2 = mul(t, t);
  Float s = add(mul(t2, -0x1.331990p-7f), 0x1.4680a4p-3f);
  s = add(mul(s, t2), -0x1.4abc24p+0f);
  s = add(mul(s, t2), 0x1.921fb6p+1f);
  s = mul(s, t);
  Float c = add(mul(t2, -0x1.4e78bep-5f), 0x1.03b058p-1f);
  c = add(mul(c, t2), -0x1.3bd39cp+1f);
  c = add(mul(c, t2), 2.0f);
  const auto mirrored = has_bit(x, 30);
  cosine = choose(mirrored, s, c);
  sine = choose(mirrored, c, s);
}

// Box-Muller, in two halves: half the radius sqrt(-2 ln u), and the point of that radius on the circle, whose other
// half (bit 31 of the angle) lies opposite: minus the radius.
template <class Word>
NFT_FN auto normal_half_radius(Word word) {
  return moderate_root(half_radius_squared(half_uniform(word)));  // 2^-26 .. 11.1, or zero
}

template <class Word, class Float>
NFT_FN void point_on_circle(Float half_radius, Word word, Float& z0, Float& z1) {
  Float cosine, sine;
  half_circle(word, cosine, sine);
  const Float turned = with_sign(half_radius, word);
  z0 = mul(turned, cosine);
  z1 = mul(turned, sine);
}

// Two words to two independent standard normals.
NFT_FN void box_muller(uint32_t radius_word, uint32_t angle_word, float& z0, float& z1) {
  point_on_circle(normal_half_radius(radius_word), angle_word, z0, z1);
}

// One word to one standard normal truncated to |z| <= c, by inversion: the lower tail probability is
// p = 1/2 - v * half_mass with v uniform and half_mass = Phi(c) - 1/2; the sign comes from the lowest bit. Inverse
// of Phi: Wichura's PPND7 (AS 241, Applied Statistics 37, 1988), relative error below 1e-6 here; needs c <= 5.
NFT_FN float truncated_normal(uint32_t x, float half_mass) {
  const float half_u = half_uniform(x);
  const float p = sub(0.5f, mul(add(half_u, half_u), half_mass));
  const float q = sub(0.5f, p);
  const float r = sub(0.180625f, mul(q, q));
  float n = add(mul(5.9109374720e+01f, r), 1.5929113202e+02f);
  n = add(mul(n, r), 5.0434271938e+01f);
  n = add(mul(n, r), 3.3871327179e+00f);
  float d = add(mul(6.7187563600e+01f, r), 7.8757757664e+01f);
  d = add(mul(d, r), 1.7895169469e+01f);
  d = add(mul(d, r), 1.0f);
  const float central = div(mul(q, n), d);
  const float t = sub(root(mul(2.0f, half_radius_squared(mul(0.5f, most(p, 2.3283064365386963e-10f))))), 1.6f);
  n = add(mul(1.7023821103e-01f, t), 1.3067284816e+00f);
  n = add(mul(n, t), 2.7568153900e+00f);
  n = add(mul(n, t), 1.4234372777e+00f);
  d = add(mul(1.2021132975e-01f, t), 7.3700164250e-01f);
  d = add(mul(d, t), 1.0f);
  return with_sign(q <= 0.425f ? central : div(n, d), x << 31);
}

}  // namespace NFT_ISA
}  // namespace nft
