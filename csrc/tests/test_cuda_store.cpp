// The number formats that programmed weights are stored in (csrc/cuda/store.h), against their definitions.
#include "../cuda/store.h"

#include <math.h>

#include <initializer_list>

#include "check.h"

using namespace nft::generic;
using nft_test::expect;

namespace {

float value_of_half(uint32_t h) {
  const int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
  return exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
}

// Every half, the midpoint to its successor (a tie, which goes to the even one) and the two numbers beside the midpoint.
void test_float16() {
  for (uint32_t h = 0; h < 0x7c00u; ++h) {
    const float value = value_of_half(h);
    const float middle = h == 0x7bffu ? 65520.0f : 0.5f * (value + value_of_half(h + 1));
    const bool ok = to_float16(value) == h && to_float16(-value) == (h | 0x8000u) && to_float16(middle) == h + (h & 1) &&
                    to_float16(nextafterf(middle, 0)) == h && to_float16(nextafterf(middle, INFINITY)) == h + 1;
    expect(ok, "half %x", h);
  }
  expect(to_float16(INFINITY) == 0x7c00 && to_float16(-1e30f) == 0xfc00, "half of infinity");
  expect(to_float16(NAN) == 0x7e00, "half of NaN");
}

// The definition in double: the quotient rounded to float32, then to an integer, ties to even, then clamped.
int8_t byte_defined(float a, float scale) {
  const double quotient = (double)(float)((double)a / (double)scale);
  return (int8_t)fmin(fmax(nearbyint(quotient), -127.0), 127.0);
}

// Every tie, its two neighbours, and numbers of all sizes under several scales.
void test_int8() {
  for (float scale : {1.0f, 0.5f, 0.001f, 1.0f / 127, 3e-39f, 2e37f})
    for (int i = -1000; i <= 1000; ++i) {
      const float middle = 0.25f * (float)i * scale;
      for (float a : {middle, nextafterf(middle, INFINITY), nextafterf(middle, -INFINITY), middle * (float)i})
        expect(to_int8(a, scale) == byte_defined(a, scale), "8 bits of %a under scale %a", a, scale);
    }
  for (int i = -127; i < 127; ++i) {
    const int even = i % 2 ? i + 1 : i;
    expect(to_int8((float)i + 0.5f, 1) == even && to_int8((float)i, 1) == i, "tie after %d", i);
  }
  expect(to_int8(INFINITY, 1) == 127 && to_int8(-1e30f, 1) == -127 && to_int8(1, 0) == 127, "8 bits of what is too large");
  expect(to_int8(NAN, 1) == 0 && to_int8(1, NAN) == 0 && to_int8(0, 0) == 0, "8 bits of NaN");
}

}  // namespace

int main() {
  test_float16();
  test_int8();
  return nft_test::finish("cuda_store");
}
