// The size of a convolution's output, against the places that its kernel really takes.
#include "core/convolution_size.h"

#include "tests/check.h"

using namespace nft::generic;
using nft_test::expect;

namespace {

// Counts the places from the left edge of the padded input on.
int64_t counted(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  int64_t places = 0;
  for (int64_t start = -padding; start + dilation * (kernel - 1) < size + padding; start += stride) ++places;
  return places;
}

void every_small_size() {
  for (int64_t size = 1; size <= 12; ++size)
    for (int64_t kernel = 1; kernel <= 7; ++kernel)
      for (int64_t stride = 1; stride <= 5; ++stride)
        for (int64_t padding = 0; padding <= 3; ++padding)
          for (int64_t dilation = 1; dilation <= 3; ++dilation) {
            const int64_t got = convolution_size(size, kernel, stride, padding, dilation);
            expect(got == counted(size, kernel, stride, padding, dilation),
                   "size %d, kernel %d, stride %d, padding %d, dilation %d: %d", (int)size, (int)kernel, (int)stride,
                   (int)padding, (int)dilation, (int)got);
          }
}

void sizes_past_32_bits() {
  const int64_t size = int64_t(1) << 40;
  expect(convolution_size(size, 3, 1, 1, 1) == size, "the same size");
  expect(convolution_size(size, 1, 2, 0, 1) == size / 2, "half the size");
}

}  // namespace

int main() {
  every_small_size();
  sizes_past_32_bits();
  return nft_test::exit_code("convolution_size");
}
