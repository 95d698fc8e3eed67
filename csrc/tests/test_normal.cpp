// The errors that csrc/core/normal.h states, over every value that can occur, and the range of the normals.
//
// The references are double precision. Errors count in ULP: units in the last place of the float32 nearest the truth.
#include <math.h>

#include <vector>

#include "../core/normal.h"
#include "check.h"

using namespace nft::generic;
using nft_test::expect;
using nft_test::same_bits;

namespace {

constexpr double kLogUlps = 0.85, kCircleUlps = 2.4, kQuantileError = 1e-6;
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
      const float got = 4.0f * half_radius_squared(u);
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

// Every angle of half a quarter; the upper half is the same arithmetic on -t, and the other quarters only exchange and negate.
// sin and cos of i + k from those of i and k: the addition formulas on two tables, good to 1e-15.
void angles() {
  constexpr int kPart = 1 << 15;
  std::vector<double> sin_low(kPart), cos_low(kPart);
  for (int i = 0; i < kPart; ++i) {
    sin_low[i] = sin(kHalfPi * 0x1p-30 * i);
    cos_low[i] = cos(kHalfPi * 0x1p-30 * i);
  }
  double worst = 0, longest = 0;
  uint32_t worst_x = 0;
  bool odd_and_even = true;
  for (uint32_t high = 0; high <= (1u << 14); ++high) {
    const double a = kHalfPi * 0x1p-30 * kPart * high, sin_high = sin(a), cos_high = cos(a);
    for (uint32_t low = 0; low < kPart && high * kPart + low <= 0x20000000u; ++low) {
      const uint32_t from_middle = high * kPart + low;  // angle pi/2 * from_middle 2^-30, 0 .. pi/4
      const double s_true = sin_high * cos_low[low] + cos_high * sin_low[low];
      const double c_true = cos_high * cos_low[low] - sin_high * sin_low[low];
      float c, s;
      circle(0x20000000u - from_middle, c, s);  // the lower half of the quarter, -pi/4 included
      const double s_error = s_true == 0 ? (s == 0 ? 0 : HUGE_VAL) : ulps(-s, s_true);
      const double error = larger(ulps(c, c_true), s_error);
      longest = larger(longest, larger(c, -s));
      if (error > worst) {
        worst = error;
        worst_x = 0x20000000u - from_middle;
      }
      if (low % 64 == 0 && from_middle < 0x20000000u) {  // the upper half is its mirror image
        float c_mirrored, s_mirrored;
        circle(0x20000000u + from_middle, c_mirrored, s_mirrored);
        odd_and_even = odd_and_even && c == c_mirrored && s == -s_mirrored;
      }
    }
  }
  printf("circle: %.4f ULP at most, at x = %08x\n", worst, worst_x);
  expect(worst <= kCircleUlps, "circle: %.4f ULP at x = %08x, stated %.2f", worst, worst_x, kCircleUlps);
  expect(odd_and_even, "circle: sine not odd or cosine not even");
  expect(longest <= 1.0, "circle: a coordinate of %.9g", longest);
}

// The four quarters against libm on a dense stride of all 2^32 words.
void quarters() {
  const double tolerance = 1.5e-7;  // kCircleUlps units of the last place of numbers below 1
  double worst = 0;
  for (uint64_t x = 0; x < (uint64_t(1) << 32); x += 4999) {
    float c, s;
    circle((uint32_t)x, c, s);
    const double angle = kHalfPi * (((double)(x & 0x3fffffffu) - 0x20000000) * 0x1p-30 + (double)(x >> 30));
    worst = fmax(worst, fmax(fabs(c - cos(angle)), fabs(s - sin(angle))));
  }
  expect(worst < tolerance, "circle: off by %g in some quarter", worst);
}

// u = (x >> 1) 2^-31 + 2^-32 in float32: never 0, never above 1, never decreasing, and |z| <= 6.66.
void uniforms() {
  expect(same_bits(uniform_open(0), 0x1p-32f) && same_bits(uniform_open(1), 0x1p-32f), "uniform_open(0) is not 2^-32");
  expect(same_bits(uniform_open(2), 0x3p-32f), "uniform_open(2) is not 3 * 2^-32");
  expect(same_bits(uniform_open(0xffffffffu), 1.0f), "uniform_open of the last word is not 1");
  float before = 0.0f;
  bool rising = true, exact = true;
  for (uint64_t x = 0; x < (uint64_t(1) << 32); x += x < (1u << 24) ? 2 : 9973) {
    const float u = uniform_open((uint32_t)x), v = uniform_24((uint32_t)x);
    rising = rising && u >= before && u > 0.0f && u <= 1.0f;
    exact = exact && u == (float)(((float)(int32_t)(x >> 1) + 0.5f) * 0x1p-31f) && v == (double)(x >> 8) * 0x1p-24 && v < 1.0f;
    before = u;
  }
  expect(rising, "uniform_open: not rising from above 0 to 1");
  expect(exact, "uniform_open or uniform_24: another value than the formula's");
  const float longest = 2.0f * normal_half_radius(0);
  expect(fabs(longest - sqrt(64 * kLn2)) < 1e-6, "the longest radius is %.9g, not sqrt(64 ln 2)", longest);
  expect(longest <= 6.661f, "the longest radius is %.9g", longest);
  expect(normal_half_radius(0xffffffffu) == 0.0f, "the shortest radius is %.9g", 2.0f * normal_half_radius(0xffffffffu));
}

// A pair of normals is the point of that radius at that angle: r cos, r sin, each product rounded.
void pairs() {
  nft_test::Words words(1);
  for (int i = 0; i < 100000; ++i) {
    const uint32_t a = words.next(), b = words.next();
    float z0, z1, c, s;
    box_muller(a, b, z0, z1);
    circle(b, c, s);
    const float r = sqrtf(4.0f * half_radius_squared(uniform_open(a)));
    expect(same_bits(z0, r * c) && same_bits(z1, r * s), "box_muller(%08x, %08x): not (r cos, r sin)", a, b);
    const double length = sqrt((double)z0 * z0 + (double)z1 * z1), u = ((a >> 1) + 0.5) * 0x1p-31;
    expect(fabs(length - sqrt(-2 * log(u))) <= 1e-6 * length + 1e-7 / (length + 1e-3), "box_muller(%08x, %08x): radius %g", a, b,
           length);
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
      const uint32_t x = i == 0 ? 0u : i == 1 ? 0xfffffffeu : i < 2000 ? 0xfffffffeu - 2u * (uint32_t)(i * i) : words.next();
      const float z = truncated_normal(x, half);
      // The formula's own error: at the p that it was given.
      const float p = 0.5f - uniform_open(x) * half;
      const double at_p = upper_quantile(p);
      if (at_p > 1e-3) worst_formula = fmax(worst_formula, fabs(fabs(z) / at_p - 1));
      // And all of it, in units of the rounding of p (2^-25 for p near 1/2, twice) divided by the density.
      const double truth = upper_quantile(0.5 - ((x >> 1) + 0.5) * 0x1p-31 * half_mass);
      const double density = exp(-0.5 * truth * truth) / sqrt(4 * kHalfPi);
      worst = fmax(worst, (fabs(fabs(z) - truth) - kQuantileError * truth) * density / 0x1p-24);
      largest = fmax(largest, fabs(z));
      expect(z == 0 || (z < 0) == ((x & 1u) != 0), "truncated_normal(%08x): the lowest bit is not the sign of %g", x, z);
      expect(same_bits(truncated_normal(x ^ 1u, half), -z), "truncated_normal(%08x): no mirror image", x);
    }
    const double beyond = c < 4.5 ? 1e-3 : 0.02;  // half_mass is rounded to 2^-25, which counts where the density is small
    printf("truncated_normal, c = %g: relative error %.3g at the rounded p; %.3f roundings of p; |z| <= %.6f\n", c, worst_formula,
           worst, largest);
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
  quarters();
  pairs();
  truncated();
  return nft_test::finish("normal");
}
