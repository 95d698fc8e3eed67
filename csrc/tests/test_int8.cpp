// The unit of a layer's weights in 8 bits (csrc/core/int8.h): how far codes reach, and what limits and faults change.
#include "../core/int8.h"

#include <math.h>

#include <vector>

#include "check.h"

using namespace nft::generic;
using nft_test::expect;

namespace {

constexpr float kNone[kLimitCount] = {INFINITY, -INFINITY, INFINITY, 0, 0, 0};

// A table as csrc/core/conductance.h lays it out, of means and deviations.
std::vector<float> table_of(std::vector<float> means, const std::vector<float>& deviations, const float (&limits)[kLimitCount]) {
  means.insert(means.end(), deviations.begin(), deviations.end());
  means.insert(means.end(), limits, limits + kLimitCount);
  return means;
}

float largest_reach(const Devices& d) {
  float most = 0;
  for (int q = 0; q < 1 << d.weight_bits; ++q) most = fmaxf(most, reach_of_code(d, q));
  return reach_of_all(d, most);
}

std::vector<float> counting(int n) {
  std::vector<float> list;
  for (int i = 0; i < n; ++i) list.push_back((float)i);
  return list;
}

// Without noise the top code is the farthest.
void switched_off() {
  for (int bits : {1, 8, 16}) expect(largest_reach({nullptr, bits, 1, kPathOff, 0}) == (float)((1 << bits) - 1), "%d bits", bits);
}

// The same deviation everywhere: step * (2^M - 1) * (1 + 4 * relative std) / 127.
void constant_devices() {
  const std::vector<float> table = table_of(counting(256), std::vector<float>(256, 10.0f), kNone);
  expect(largest_reach({table.data(), 8, 2, kPathFast, 0}) == 255 + 40, "four deviations beyond the top");
  expect(weight_unit(0.5f, 295.0f) == 147.5f / 127.0f && image_unit(254.0f) == 2.0f, "units");
}

// The farthest code need not be the top one, on either side of zero.
void other_codes() {
  std::vector<float> means = counting(256), deviations(256, 0.0f);
  deviations[7] = 100;
  expect(largest_reach({table_of(means, deviations, kNone).data(), 8, 2, kPathFast, 0}) == 407, "a wide code");
  means[3] = -500;
  expect(largest_reach({table_of(means, deviations, kNone).data(), 8, 2, kPathFast, 0}) == 500, "a shifted code");
}

// On the per-device path codes reach as far as on the fast path, whose tables are sums over the devices.
void devices() {
  const std::vector<float> means = {0.1f, 0.9f, 2.0f, 2.9f}, deviations = {0.1f, 0.3f, 0.2f, 0.1f};
  const std::vector<float> table = table_of(means, deviations, kNone);
  for (int mapping : {kMappingSign, kMappingDifferential})
    for (int q = 0; q < 256; ++q) {
      double mean = 0, variance = 0;
      for (int j = 0; j < 4; ++j) {
        const int level = q >> 2 * j & 3;
        const double place = 1 << 2 * j;
        mean += place * (means[(size_t)level] - (mapping ? means[0] : 0));
        variance += place * place * (pow(deviations[(size_t)level], 2) + (mapping ? pow(deviations[0], 2) : 0));
      }
      const double expected = fabs(mean) + 4 * sqrt(variance);
      expect(fabs(reach_of_code({table.data(), 8, 2, kPathDevice, mapping}, q) - expected) < 1e-4, "code %d, mapping %d", q, mapping);
    }
}

void limits() {
  const std::vector<float> means = {0, 1, 2, 3}, deviations(4, 1.0f);
  const auto reach = [&](int mapping, const float (&limits)[kLimitCount]) {
    return largest_reach({table_of(means, deviations, limits).data(), 8, 2, kPathDevice, mapping});
  };
  const float free = reach(0, kNone);
  expect(fabs(free - (255 + 4 * sqrt(4369.0))) < 1e-3, "no limits: %g", free);
  expect(reach(0, {INFINITY, 0.0f, 3.0f, 0, 0, 0}) == 255, "conductances between zero and the top");
  expect(reach(0, {INFINITY, -4.0f, 3.0f, 0, 0, 0}) == 340, "the lower bound lies farther out");
  expect(reach(1, {INFINITY, -1.0f, 2.0f, 0, 0, 0}) == 255, "a pair's difference");
  expect(reach(0, {INFINITY, -INFINITY, 3.0f, 0, 0, 0}) == free, "one bound only");
  expect(reach(0, {INFINITY, 0.0f, 2.0f, 0, 0, 0}) == 170 && reach(0, {INFINITY, 0.0f, 2.0f, 0, 0.1f, 0}) == 255,
         "a stuck device reaches the top past its bounds");
}

}  // namespace

int main() {
  switched_off();
  constant_devices();
  other_codes();
  devices();
  limits();
  return nft_test::finish("int8");
}
