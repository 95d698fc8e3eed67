// The errors that csrc/core/normal.h states, over every value that can occur, and the range of the normals.
//
// The references are double precision. Errors count in ULP: units in the last place of the float32 nearest the truth.
#include <math.h>

#include <vector>

#include "core/normal.h"
#include "tests/check.h"

using namespace nft::generic;
using nft_test::expect;
using nft_test::same_bits;

namespace {

constexpr double kLogUlps = 1.23, kCircleUlps = 1.57, kQuantileError = 1e-6;
constexpr double kHalfPi = 1.57079632679489661923, kLn2 = 0.693147180559945309417;

// The point of radius one at angle x.
void circle(uint32_t x, float& cosine, float& sine) { point_on_circle(0.5f, x, cosine, sine); }

double larger(double a, double b) { return a > b ? a : b; }

double ulps(float value, double truth) {
  uint64_t u;
  memcpy(&u, &truth, sizeof u);
  u = (u & 0x7ff0000000000000u) - (uint64_t(23) << 52);  // 2^(exponent of truth - 23)
  double unit;
  memcpy(&unit, &u, sizeof unit);
  return fabs(value - truth) / unit;
}

// Every float32 u in [2^-32, 1]. ln u = e ln 2 + ln c with c in [sqrt(1/2), sqrt(2)): no cancellation, 2^23 logarithms.
void logarithm() {
  double worst = 0;
  float worst_u = 0;
  long count = 0;
  bool finite = true;
  for (uint32_t i = 0; i < (1u << 23); ++i) {
    const float c = float_of(0x3f3504f3u + i);
    const double ln_c = log((double)c);
    for (int e = -33; e <= 0; ++e) {
      const float u = float_of(0x3f3504f3u + i + ((uint32_t)e << 23));
      if (u < 0x1p-32f || u > 1.0f) continue;
      const float got = 4.0f * half_radius_squared(0.5f * u);
      ++count;
      finite = finite && got >= 0.0f && got < 45.0f;  // so its root exists
      const double truth = -2.0 * (e * kLn2 + ln_c);
      const double error = truth == 0 ? (got == 0 ? 0 : HUGE_VAL) : ulps(got, truth);
      if (error > worst) {
        worst = error;
        worst_u = u;
      }
    }
  }
  printf("-2 ln u: %.4f ULP at most, at u = %a (%ld values)\n", worst, worst_u, count);
  expect(count == 32 * (1l << 23) + 1, "-2 ln u: saw %ld values, not all of [2^-32, 1]", count);
  expect(worst <= kLogUlps, "-2 ln u: %.4f ULP at u = %a, stated %.2f", worst, worst_u, kLogUlps);
  expect(finite, "-2 ln u: negative, infinite or NaN somewhere");
}

// Every angle of the first quarter against libm; the other
// quarters mirror and negate it, and bits 23 to 29 mean nothing.
void angles() {
  constexpr uint32_t kMirrored = 1u << 30, kOpposite = 1u << 31, kUnused = 0x3f800000u;
  double worst = 0, longest = 0;
  uint32_t worst_x = 0;
  bool quarters = true;
  for (uint32_t x = 0; x < (1u << 23); ++x) {
    const double angle = kHalfPi * (((double)x - 0x400000) * 0x1p-23), s_true = sin(angle), c_true = cos(angle);
    float c, s;
    circle(x, c, s);
    const double s_error = s_true == 0 ? (s == 0 ? 0 : HUGE_VAL) : ulps(s, s_true);
    const double error = larger(ulps(c, c_true), s_error);
    longest = larger(longest, larger(c, fabs(s)));
    if (error > worst) {
      worst = error;
      worst_x = x;
    }
    float c1, s1, c2, s2, c3, s3;
    circle(x | kMirrored | kUnused, c1, s1);
    circle(x | kOpposite, c2, s2);
    circle(x | kOpposite | kMirrored, c3, s3);
    quarters = quarters && same_bits(c1, s) && same_bits(s1, c) && same_bits(c2, -c) && same_bits(s2, -s) &&
               same_bits(c3, -s) && same_bits(s3, -c);
  }
  printf("circle: %.4f ULP at most, at x = %08x\n", worst, worst_x);
  expect(worst <= kCircleUlps, "circle: %.4f ULP at x = %08x, stated %.2f", worst, worst_x, kCircleUlps);
  expect(quarters, "circle: a quarter is not the mirror image or the opposite of the first");
  expect(longest <= 1.0, "circle: a coordinate of %.9g", longest);
}

// u = (x >> 1) 2^-31 + 2^-32 in float32: never 0, never above 1, never decreasing, and |z| <= 6.66. In halves here.
void uniforms() {
  expect(same_bits(half_uniform(0u), 0x1p-33f) && same_bits(half_uniform(1u), 0x1p-33f),
         "half_uniform(0) is not 2^-33");
  expect(same_bits(half_uniform(2u), 0x3p-33f), "half_uniform(2) is not 3 * 2^-33");
  expect(same_bits(half_uniform(0xffffffffu), 0.5f), "half_uniform of the last word is not 1/2");
  float before = 0.0f;
  bool rising = true, exact = true;
  for (uint64_t x = 0; x < (uint64_t(1) << 32); x += x < (1u << 24) ? 2 : 9973) {
    const float u = 2.0f * half_uniform((uint32_t)x), v = uniform_24((uint32_t)x);
    rising = rising && u >= before && u > 0.0f && u <= 1.0f;
    exact = exact && u == (float)(((float)(int32_t)(x >> 1) + 0.5f) * 0x1p-31f) && v == (double)(x >> 8) * 0x1p-24 &&
            v < 1.0f;
    before = u;
  }
  expect(rising, "half_uniform: not rising from above 0 to 1/2");
  expect(exact, "half_uniform or uniform_24: another value than the formula's");
  const float longest = 2.0f * normal_half_radius(0);
  expect(fabs(longest - sqrt(64 * kLn2)) < 1e-6, "the longest radius is %.9g, not sqrt(64 ln 2)", longest);
  expect(longest <= 6.661f, "the longest radius is %.9g", longest);
  expect(normal_half_radius(0xffffffffu) == 0.0f, "the shortest radius is %.9g",
         2.0f * normal_half_radius(0xffffffffu));
}

// A pair of normals is the point of that radius at that angle: r cos, r sin, each product rounded.
void pairs() {
  nft_test::Words words(1);
  for (int i = 0; i < 100000; ++i) {
    const uint32_t a = words.next(), b = words.next();
    float z0, z1, c, s;
    box_muller(a, b, z0, z1);
    circle(b, c, s);
    const float r = sqrtf(4.0f * half_radius_squared(half_uniform(a)));
    expect(same_bits(z0, r * c) && same_bits(z1, r * s), "box_muller(%08x, %08x): not (r cos, r sin)", a, b);
    const double length = sqrt((double)z0 * z0 + (double)z1 * z1), u = ((a >> 1) + 0.5) * 0x1p-31;
    expect(fabs(length - sqrt(-2 * log(u))) <= 1e-6 * length + 1e-7 / (length + 1e-3),
           "box_muller(%08x, %08x): radius %g", a, b, length);
  }
}

// z > 0 with P(Z > z) = p, by bisection on erfc.
double upper_quantile(double p) {
  double low = 0, high = 8;
  for (int i = 0; i < 60; ++i) {
    const double z = 0.5 * (low + high);
    (0.5 * erfc(z * M_SQRT1_2) > p ? low : high) = z;
  }
  return low;
}

// Normals truncated to |z| <= c: against the inverse of the normal distribution function, in double.
void truncated() {
  for (double c : {0.01, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0}) {
    const double half_mass = 0.5 * erf(c * M_SQRT1_2);
    const float half = (float)half_mass;
    double worst_formula = 0, worst = 0, largest = 0;
    nft_test::Words words(2);
    for (int i = 0; i < 20000; ++i) {
      const uint32_t x = i == 0     ? 0u
                         : i == 1   ? 0xfffffffeu
                         : i < 2000 ? 0xfffffffeu - 2u * (uint32_t)(i * i)
                                    : words.next();
      const float z = truncated_normal(x, half);
      // The formula's own error: at the p that it was given.
      const float p = 0.5f - 2.0f * half_uniform(x) * half;
      const double at_p = upper_quantile(p);
      if (at_p > 1e-3) worst_formula = fmax(worst_formula, fabs(fabs(z) / at_p - 1));
      // And all of it, in units of the rounding of p (2^-25 for p near 1/2, twice) divided by the density.
      const double truth = upper_quantile(0.5 - ((x >> 1) + 0.5) * 0x1p-31 * half_mass);
      const double density = exp(-0.5 * truth * truth) / sqrt(4 * kHalfPi);
      worst = fmax(worst, (fabs(fabs(z) - truth) - kQuantileError * truth) * density / 0x1p-24);
      largest = fmax(largest, fabs(z));
      expect(z == 0 || (z < 0) == ((x & 1u) != 0), "truncated_normal(%08x): the lowest bit is not the sign of %g", x,
             z);
      expect(same_bits(truncated_normal(x ^ 1u, half), -z), "truncated_normal(%08x): no mirror image", x);
    }
    const double beyond =
        c < 4.5 ? 1e-3 : 0.02;  // half_mass is rounded to 2^-25, which counts where the density is small
    printf("truncated_normal, c = %g: relative error %.3g at the rounded p; %.3f roundings of p; |z| <= %.6f\n", c,
           worst_formula, worst, largest);
    expect(worst_formula < kQuantileError, "truncated_normal, c = %g: relative error %g", c, worst_formula);
    expect(worst <= 1.0, "truncated_normal, c = %g: off by %g roundings of p", c, worst);
    expect(largest <= c + beyond && largest >= c - beyond, "truncated_normal, c = %g: largest %g", c, largest);
  }
}

}  // namespace

int main() {
  uniforms();
  logarithm();
  angles();
  pairs();
  truncated();
  return nft_test::exit_code("normal");
}
