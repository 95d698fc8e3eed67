// The number formats that programmed weights are stored in
// (csrc/cuda/sampler/vector_access.h), against their definitions.
#include "cuda/sampler/vector_access.h"

#include <math.h>

#include "tests/check.h"

using namespace nft::generic;
using nft_test::expect;

namespace {

float value_of_half(uint32_t h) {
  const int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
  return exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
}

// Every half, the midpoint to its successor (a tie, which goes
// to the even one) and the two numbers beside the midpoint.
void test_float16() {
  for (uint32_t h = 0; h < 0x7c00u; ++h) {
    const float value = value_of_half(h);
    const float middle = h == 0x7bffu ? 65520.0f : 0.5f * (value + value_of_half(h + 1));
    const bool ok = to_float16(value) == h && to_float16(-value) == (h | 0x8000u) &&
                    to_float16(middle) == h + (h & 1) && to_float16(nextafterf(middle, 0)) == h &&
                    to_float16(nextafterf(middle, INFINITY)) == h + 1;
    expect(ok, "half %x", h);
  }
  expect(to_float16(INFINITY) == 0x7c00 && to_float16(-1e30f) == 0xfc00, "half of infinity");
  expect(to_float16(NAN) == 0x7e00, "half of NaN");
}

}  // namespace

int main() {
  test_float16();
  return nft_test::exit_code("vector_access");
}
