// Philox4x32-10 of csrc/core/philox.h, bit for bit, for one thread. The 64-bit products are inline assembly: the
// compiler would emit more instructions.
#pragma once

#include "core/philox.h"

namespace nft {
namespace NFT_ISA {

NFT_FN void wide_product(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
#if defined(__CUDA_ARCH__)
  asm("{\n .reg .u64 p;\n mul.wide.u32 p, %2, %3;\n mov.b64 {%0, %1}, p;\n}" : "=r"(low), "=r"(high) : "r"(a), "r"(b));
#else
  const uint64_t p = (uint64_t)a * b;
  high = (uint32_t)(p >> 32);
  low = (uint32_t)p;
#endif
}

NFT_FN void philox_of_thread(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    uint32_t high0, low0, high1, low1;
    wide_product(kMultiplier0, c0, high0, low0);
    wide_product(kMultiplier1, c2, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += kKeyStep0;
    k1 += kKeyStep1;
  }
}

}  // namespace NFT_ISA
}  // namespace nft
