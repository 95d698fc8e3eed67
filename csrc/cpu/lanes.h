// Vectors of 64-bit lanes, each holding a 32-bit random word, in the width of the current instruction set.
//
// Philox needs both halves of 32 x 32 -> 64 bit products. One instruction gives them for every second 32-bit lane,
// so 64-bit lanes need no shuffles, and since that instruction ignores the upper half of its inputs, no masks either.
// Compilers do not find this by themselves (they take the slow 64-bit multiply), hence the one intrinsic per width.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nft {
namespace NFT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 8, kGroups = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4, kGroups = 2;
#else
constexpr int kLanes = 2, kGroups = 2;
#endif

typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));

inline __attribute__((always_inline)) Lanes broadcast(uint32_t x) { return Lanes{} + (uint64_t)x; }

// Full product of the lower halves; the upper halves are ignored.
inline __attribute__((always_inline)) Lanes product(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Upper halves moved down; what is left above means nothing. A shuffle, not a shift: shifts queue behind the multiplies.
inline __attribute__((always_inline)) Lanes upper(Lanes a) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_shuffle_epi32((__m512i)a, (_MM_PERM_ENUM)0xf5);
#elif defined(__AVX2__)
  return (Lanes)_mm256_shuffle_epi32((__m256i)a, 0xf5);
#elif defined(__x86_64__)
  return (Lanes)_mm_shuffle_epi32((__m128i)a, 0xf5);
#else
  return a >> 32;
#endif
}

inline __attribute__((always_inline)) Lanes xor3(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// The words of `even` and `odd` alternating, 2 * kLanes of them (little-endian).
inline __attribute__((always_inline)) void store_pairs(Lanes even, Lanes odd, uint32_t* out) {
#if defined(__AVX512F__)
  const Lanes pairs = (Lanes)_mm512_mask_shuffle_epi32((__m512i)even, 0xaaaa, (__m512i)odd, (_MM_PERM_ENUM)0xa0);
#else
  const Lanes pairs = (even & broadcast(0xffffffffu)) | (odd << 32);
#endif
  __builtin_memcpy(out, &pairs, sizeof pairs);
}

inline __attribute__((always_inline)) Lanes lane_numbers() {
  Lanes numbers;
  for (int lane = 0; lane < kLanes; ++lane) numbers[lane] = (uint64_t)lane;
  return numbers;
}

// The ten round keys, kept in memory for many chunks: broadcast from there they cost a load, not an arithmetic slot.
struct Schedule {
  uint64_t key0[10], key1[10];

  Schedule() = default;
  Schedule(uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
      key0[round] = k0 + 0x9E3779B9u * (uint32_t)round;
      key1[round] = k1 + 0xBB67AE85u * (uint32_t)round;
    }
  }
};

// Ten rounds of core/philox.h on kGroups * kLanes counters; only the lower halves of the lanes mean anything.
// Independent groups side by side hide the latency of the ten dependent rounds.
inline __attribute__((always_inline)) void philox_lanes(Lanes (*c)[4], const Schedule& schedule) {
  const Lanes m0 = broadcast(0xD2511F53u), m1 = broadcast(0xCD9E8D57u);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Lanes key0 = Lanes{} + schedule.key0[round];
    const Lanes key1 = Lanes{} + schedule.key1[round];
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      const Lanes p0 = product(m0, c[g][0]), p1 = product(m1, c[g][2]);
      c[g][0] = xor3(upper(p1), c[g][1], key0);
      c[g][1] = p1;
      c[g][2] = xor3(upper(p0), c[g][3], key1);
      c[g][3] = p0;
    }
  }
}

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
