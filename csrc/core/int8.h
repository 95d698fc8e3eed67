// Numbers of 8 bits: how a programmed weight and an input are stored in them, and what their products' sums are worth.
// docs/int8.md says it in words.
//
//   u_w = fl(fl(s * reach) / 127)                one unit a layer, the same on all chips; `reach` covers the noise
//   u_x = fl(max|x| / 127)                       one unit an image: a result does not depend on its neighbours in the batch
//   y   = fl(fl(sum_k w8 x8) * fl(u_w * u_x))    the sum exact in 32 bits
#pragma once

#include "conductance.h"

namespace nft {
namespace NFT_ISA {

// The 8-bit number nearest to fl(a / unit), ties to even, clamped to +-127; a division, as in Eq. 4. NaN, which 8 bits
// cannot say, becomes 0: what was not finite shows in its unit. The sum with 1.5 * 2^23 rounds to an integer, which its
// lowest bits then hold.
NFT_FN int8_t to_int8(float a, float unit) {
  const float quotient = div(a, unit);
  const float bounded = least(most(quotient, -127.0f), 127.0f);
  const int32_t rounded = as_signed(bits_of(add(bounded, 12582912.0f)) - 0x4b400000u);
  return (int8_t)(quotient == quotient ? rounded : 0);
}

// The longest sum of products that 32 bits hold.
constexpr int64_t kMostInt8Inner = 0x7fffffff / (127 * 127);

// A layer's devices, as its operator receives them.
struct Devices {
  const float* table;
  int weight_bits, device_bits, path, mapping;
};

NFT_FN float magnitude(float a) { return float_of(bits_of(a) & 0x7fffffffu); }
NFT_FN float far_out(float mean, float std) { return add(magnitude(mean), mul(4.0f, std)); }

// How far a weight of code q lies from zero, in steps, but for the tails beyond four standard deviations. Devices with
// limits are taken for the Gaussian ones that they are made of.
NFT_FN float reach_of_code(const Devices& d, int q) {
  if (d.path == kPathOff) return from_int(q);
  if (d.path == kPathFast) return far_out(d.table[q], d.table[(1 << d.weight_bits) + q]);
  const int levels = 1 << d.device_bits;
  float mean = 0.0f, variance = 0.0f;
  for (int shift = 0; shift < d.weight_bits; shift += d.device_bits) {
    const int level = (q >> shift) & (levels - 1);
    const float place = from_int(1 << shift), sd = mul(d.table[levels + level], place);
    mean = add(mean, mul(d.table[level], place));
    variance = add(variance, mul(sd, sd));
    if (d.mapping != kMappingDifferential) continue;
    const float idle = mul(d.table[levels], place);
    mean = sub(mean, mul(d.table[0], place));
    variance = add(variance, mul(idle, idle));
  }
  return far_out(mean, root(variance));
}

// Of all codes, from the largest of the above: clipped devices reach no farther than their bounds, and a stuck one may
// reach the top whatever it was programmed to.
NFT_FN float reach_of_all(const Devices& d, float largest) {
  if (d.path != kPathDevice) return largest;
  const Limits limits = limits_of(d.table, d.device_bits);
  const float top = from_int((1 << d.weight_bits) - 1), highest = from_int((1 << d.device_bits) - 1);
  const float bound = d.mapping == kMappingDifferential ? sub(limits.g_max, limits.g_min)
                                                        : most(magnitude(limits.g_min), magnitude(limits.g_max));
  const float reach = least(largest, mul(bound, div(top, highest)));
  return limits.stuck_any > 0.0f ? most(reach, top) : reach;
}

NFT_FN float weight_unit(float step, float reach) { return div(mul(step, reach), 127.0f); }
NFT_FN float image_unit(float largest) { return div(largest, 127.0f); }

NFT_FN float worth(int32_t sum, float unit) { return mul(from_int(sum), unit); }

}  // namespace NFT_ISA
}  // namespace nft
