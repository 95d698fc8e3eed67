// From a code to a programmed weight (Eq. 5), in units of the step, and the flat float32 table that describes a device.
//
//   fast path        table = [ mean[2^M], std[2^M] ]
//                    W_p = sign * (s * (mean[q] + std[q] * z)), one normal per weight.
//                    Exact for independent Gaussian devices: their weighted sum is Gaussian.
//   per-device path  table = [ mean[2^K], sd[2^K], limits[6] ]
//                    g_j = mean[l_j] + sd[l_j] * z_j for each device j, then the limits, then
//                    W_p = sign * (s * sum_j g_j 2^(jK)), in ascending j.
#pragma once

#include "core/normal.h"
#include "core/philox.h"
#include "core/quantize.h"

namespace nft {
namespace NFT_ISA {

enum Path : int { kPathOff = 0, kPathFast = 1, kPathDevice = 2 };
enum Mapping : int { kMappingSign = 0, kMappingDifferential = 1 };

// How a device differs from a Gaussian one, in the order of application. Conductances in level units (0 .. 2^K - 1).
struct Limits {
  float z_max;      // right-censored Gaussian: z = min(z, z_max); +inf: none
  float g_min;      // conductance clipped below; -inf: none
  float g_max;      // and above; +inf: none
  float stuck_off;  // probability to be stuck at level 0
  float stuck_any;  // probability to be stuck at level 0 or at the top level
  float half_mass;  // Phi(c) - 1/2 of a Gaussian truncated to |z| <= c; 0: not truncated
};
constexpr int kLimitCount = 6;

NFT_FN Limits limits_of(const float* table, int device_bits) {
  const float* p = table + 2 * (1 << device_bits);
  Limits limits;
  limits.z_max = p[0];
  limits.g_min = p[1];
  limits.g_max = p[2];
  limits.stuck_off = p[3];
  limits.stuck_any = p[4];
  limits.half_mass = p[5];
  return limits;
}

// Fast path, in units of the step.
NFT_FN float weight_in_steps(float mean, float std, float z) { return add(mean, mul(std, z)); }

// Conductance of one device in level units, before stuck-at faults.
NFT_FN float conductance(float mean, float sd, float z, const Limits& limits) {
  const float g = add(mean, mul(sd, least(z, limits.z_max)));
  return least(most(g, limits.g_min), limits.g_max);
}

NFT_FN float with_fault(float g, uint32_t word, float top, const Limits& limits) {
  const float u = uniform_24(word);
  const float stuck = u < limits.stuck_off ? 0.0f : top;
  return u < limits.stuck_any ? stuck : g;
}

// Back to weight units, with the sign of its crossbar. The step is positive, so it takes the sign: the same bits as
// after the product, and one vector operation less on AVX-512.
NFT_FN float programmed(float in_steps, float step, uint32_t sign) { return mul(copy_sign(step, sign), in_steps); }

}  // namespace NFT_ISA
}  // namespace nft
