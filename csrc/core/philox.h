// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11),
// and the one place where the meaning of its 128-bit counter is written down (docs/reference/noise.md repeats it for
// readers).
//
//   key      k0 = low  32 bits of the seed            k1 = high 32 bits of the seed
//   counter  c0 = low  32 bits of the quad, quad = element / 4 (row-major logical index in the weight)
//            c1 = bits  0..15: bits 32..47 of the quad
//                 bits 16..23: slice  (which random number of this weight, see below)
//                 bits 24..31: domain (evaluation 0, training 1, selection 2, permutation 3)
//            c2 = stream (which layer)
//            c3 = draw   (which chip)
//
// The four output words belong to the four neighbouring elements 4 * quad + 0..3. No two of (seed, domain, stream,
// draw, slice, quad) share a counter, so no random number is ever used twice.
#pragma once

#include "core/macros.h"

namespace nft {
namespace NFT_ISA {

enum Slice : uint32_t {
  kSliceActive = 0,      // + j: the Gaussian of device j (per-device path)
  kSliceIdle = 32,       // + j: the same on the idle array of a differential pair
  kSliceFault = 64,      // + j: the stuck-at uniform of device j
  kSliceIdleFault = 96,  // + j: the same on the idle array
  kSliceWeight = 255,    // the one Gaussian of a whole weight (fast path)
};

struct Key {
  uint32_t k0, k1;  // seed
  uint32_t stream;  // layer
  uint32_t draw;    // chip
  uint32_t domain;  // evaluation, training, ...
};

// A row (seed, draw) of the int64 key tensor: draw sits in bits 0..31 of the second number, the domain in 32..39.
NFT_FN Key make_key(int64_t seed, int64_t draw_and_domain, uint32_t stream) {
  Key key;
  key.k0 = (uint32_t)(uint64_t)seed;
  key.k1 = (uint32_t)((uint64_t)seed >> 32);
  key.stream = stream;
  key.draw = (uint32_t)(uint64_t)draw_and_domain;
  key.domain = (uint32_t)((uint64_t)draw_and_domain >> 32) & 0xffu;
  return key;
}

// Counter words from the number of a quad.
NFT_FN uint32_t counter0(uint64_t quad) { return (uint32_t)quad; }
NFT_FN uint32_t counter1(uint64_t quad, uint32_t slice, uint32_t domain) {
  return ((uint32_t)(quad >> 32) & 0xffffu) | (slice << 16) | (domain << 24);
}

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;  // of counter words 0 and 2
constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;        // from one round's key to the next

// Ten rounds in place: c (the counter) becomes four random words under the key (k0, k1).
NFT_FN void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)kMultiplier0 * c0;
    const uint64_t p1 = (uint64_t)kMultiplier1 * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += kKeyStep0;
    k1 += kKeyStep1;
  }
}

}  // namespace NFT_ISA
}  // namespace nft
