// Looks up many entries of one short table, for the current instruction set.
//
// A compiler reads entries one by one, with several instructions per entry. Short tables are permuted in registers
// instead: the levels of a device, and on AVX-512 the codes of weights of up to 8 bits.
#pragma once

#include "cpu/simd/vectors.h"

namespace nft {
namespace NFT_ISA {
namespace {

#if defined(__AVX512F__)
// Tables of 32 kPairs entries: permutations pick one of each 32, and bits 5, 6, ... of the index pick among these.
template <int kPairs>
void look_up_pairs(const float* table, const int32_t* index, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const __m512i at = _mm512_loadu_si512(index + i);
    __m512 found[kPairs];
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p)
      found[p] = _mm512_permutex2var_ps(_mm512_loadu_ps(table + 32 * p), at, _mm512_loadu_ps(table + 32 * p + 16));
#pragma GCC unroll 3
    for (int bit = 5; kPairs >> (bit - 5) > 1; ++bit) {
      const __mmask16 upper = _mm512_test_epi32_mask(at, _mm512_set1_epi32(1 << bit));
#pragma GCC unroll 4
      for (int p = 0; p < kPairs >> (bit - 4); ++p)
        found[p] = _mm512_mask_blend_ps(upper, found[2 * p], found[2 * p + 1]);
    }
    _mm512_storeu_ps(out + i, found[0]);
  }
}
#endif

// out[i] = table[index[i]] for i < n, a multiple of 16; 0 <= index < entries, a power of two.
void look_up(const float* table, int entries, const int32_t* index, int n, float* out) {
#if defined(__AVX512F__)
  if (entries == 256) return look_up_pairs<8>(table, index, n, out);
  if (entries == 128) return look_up_pairs<4>(table, index, n, out);
  if (entries == 64) return look_up_pairs<2>(table, index, n, out);
  if (entries == 32) return look_up_pairs<1>(table, index, n, out);
#endif
#if defined(__AVX2__)
  if (entries <= kVector) {
    FloatVector kept = {};
    memcpy(&kept, table, (size_t)entries * sizeof(float));
    for (int i = 0; i < n; i += kVector) {
      IntVector at;
      memcpy(&at, index + i, sizeof at);
#if defined(__AVX512F__)
      const FloatVector found = (FloatVector)_mm512_permutexvar_ps((__m512i)at, (__m512)kept);
#else
      const FloatVector found = (FloatVector)_mm256_permutevar8x32_ps((__m256)kept, (__m256i)at);
#endif
      memcpy(out + i, &found, sizeof found);
    }
    return;
  }
#endif
  (void)entries;
  for (int i = 0; i < n; ++i) out[i] = table[index[i]];
}

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
