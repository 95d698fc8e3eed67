// Vectors of 64-bit lanes, each holding a 32-bit random word, in the width of the current instruction set.
//
// Philox needs both halves of 32 x 32 -> 64 bit products. One instruction gives them for every second 32-bit lane, so
// 64-bit lanes need no shuffles. That instruction ignores the upper halves of its inputs, so they need no masks either.
// Compilers choose the slow 64-bit multiply instead, hence one intrinsic per width.
#pragma once

#include "core/philox.h"

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

inline __attribute__((always_inline)) Lanes broadcast(uint64_t x) { return Lanes{} + x; }

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

// Upper halves moved down; the new upper halves are undefined.
// A shuffle, not a shift: shifts queue behind the multiplies.
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

// Lanes of two 32-bit numbers: the lower or the upper halves of a (lower) and of b (upper).
inline __attribute__((always_inline)) Lanes lower_halves(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_shuffle_epi32((__m512i)a, 0xaaaa, (__m512i)b, (_MM_PERM_ENUM)0xa0);
#elif defined(__AVX2__)
  return (Lanes)_mm256_blend_epi32((__m256i)a, _mm256_shuffle_epi32((__m256i)b, 0xa0), 0xaa);
#else
  return (a & broadcast(0xffffffffu)) | (b << 32);
#endif
}
inline __attribute__((always_inline)) Lanes upper_halves(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_shuffle_epi32((__m512i)b, 0x5555, (__m512i)a, (_MM_PERM_ENUM)0xf5);
#elif defined(__AVX2__)
  return (Lanes)_mm256_blend_epi32(_mm256_shuffle_epi32((__m256i)a, 0xf5), (__m256i)b, 0xaa);
#else
  return (a >> 32) | (b & broadcast(0xffffffff00000000u));
#endif
}

inline __attribute__((always_inline)) void store(Lanes a, uint32_t* out) { __builtin_memcpy(out, &a, sizeof a); }

// kMultiplier0 * i for the numbers i of the lanes of group g.
// Adding kMultiplier0 * quad0 gives the first products of Philox.
inline __attribute__((always_inline)) Lanes first_products(int g) {
  Lanes products = {};
  for (int lane = 0; lane < kLanes; ++lane) products[lane] = (uint64_t)kMultiplier0 * (uint32_t)(g * kLanes + lane);
  return products;
}

// The ten round keys, in memory for many chunks: a broadcast from memory costs a load, not an arithmetic slot.
struct Schedule {
  uint64_t key0[10], key1[10];
  uint64_t last;  // the two keys of the last round side by side

  Schedule() = default;
  Schedule(uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
      key0[round] = k0 + kKeyStep0 * (uint32_t)round;
      key1[round] = k1 + kKeyStep1 * (uint32_t)round;
    }
    last = key0[9] | key1[9] << 32;
  }
};

// The counters of a chunk differ only in word 0, so these four values are computed once
// per chunk: round 1 shares the product of word 2, hence words 0 and 1 after it, and
// hence round 2 shares the product of word 0. Each lane xors them with its own words.
struct Common {
  uint64_t round1_word2, round2_word0, round2_word2, round3_word2;

  Common(uint32_t c1, uint32_t c2, uint32_t c3, const Schedule& schedule) {
    const uint64_t first = (uint64_t)kMultiplier1 * c2;
    const uint32_t word0 = (uint32_t)(first >> 32) ^ c1 ^ (uint32_t)schedule.key0[0], word1 = (uint32_t)first;
    const uint64_t second = (uint64_t)kMultiplier0 * word0;
    round1_word2 = c3 ^ schedule.key1[0];
    round2_word0 = word1 ^ schedule.key0[1];
    round2_word2 = (second >> 32) ^ schedule.key1[1];
    round3_word2 = (uint32_t)second ^ schedule.key1[2];
  }
};

// Ten rounds of core/philox.h on kGroups * kLanes counters, given as their first products kMultiplier0 * word 0.
// Between rounds only the lower halves of the lanes count. At the end a lane of `even` holds the random words 0 and 2
// side by side, and a lane of `odd` the words 1 and 3. Independent groups hide the latency of the ten dependent rounds.
inline __attribute__((always_inline)) void philox_lanes(const Lanes* products, const Common& common,
                                                        const Schedule& schedule, Lanes* even, Lanes* odd) {
  const Lanes m0 = broadcast(kMultiplier0), m1 = broadcast(kMultiplier1);
  Lanes c[kGroups][4];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {  // rounds 1 and 2; word 3 after them is the same in all lanes
    const Lanes p0 = products[g];
    const Lanes p1 = product(m1, upper(p0) ^ broadcast(common.round1_word2));
    c[g][0] = upper(p1) ^ broadcast(common.round2_word0);
    c[g][1] = p1;
    c[g][2] = p0 ^ broadcast(common.round2_word2);
  }
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {  // round 3
    const Lanes p0 = product(m0, c[g][0]), p1 = product(m1, c[g][2]);
    c[g][0] = xor3(upper(p1), c[g][1], broadcast(schedule.key0[2]));
    c[g][1] = p1;
    c[g][2] = upper(p0) ^ broadcast(common.round3_word2);
    c[g][3] = p0;
  }
#pragma GCC unroll 10
  for (int round = 3; round < 9; ++round) {  // rounds 4 to 9
    const Lanes key0 = broadcast(schedule.key0[round]), key1 = broadcast(schedule.key1[round]);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      const Lanes p0 = product(m0, c[g][0]), p1 = product(m1, c[g][2]);
      c[g][0] = xor3(upper(p1), c[g][1], key0);
      c[g][1] = p1;
      c[g][2] = xor3(upper(p0), c[g][3], key1);
      c[g][3] = p0;
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {  // round 10
    const Lanes p0 = product(m0, c[g][0]), p1 = product(m1, c[g][2]);
    even[g] = xor3(upper_halves(p1, p0), lower_halves(c[g][1], c[g][3]), broadcast(schedule.last));
    odd[g] = lower_halves(p1, p0);
  }
}

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
