// Several vectors at once as one number, for the functions of core/normal.h.
//
// A polynomial is one long chain of dependent operations. A processor looks about a hundred instructions ahead, too few
// to overlap enough chains. So the operations of kWide vectors alternate here. In each lane the operations are those of
// core/macros.h, hence the same bits.
#pragma once

#include "core/macros.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nft {
namespace NFT_ISA {

#if defined(__AVX512F__)
constexpr int kVector = 16, kWide = 8;
#elif defined(__AVX2__)
constexpr int kVector = 8, kWide = 4;
#else
constexpr int kVector = 4, kWide = 2;
#endif
constexpr int kWideLanes = kVector * kWide;

typedef float FloatVector __attribute__((vector_size(4 * kVector)));
typedef uint32_t WordVector __attribute__((vector_size(4 * kVector)));
typedef int32_t IntVector __attribute__((vector_size(4 * kVector)));

struct Floats {
  FloatVector v[kWide];
};
struct Words32 {
  WordVector v[kWide];
};
struct Ints32 {
  IntVector v[kWide];
};

// The result whose vector i is `expression`.
#define NFT_WIDE(Result, expression)                                               \
  Result r;                                                                        \
  _Pragma("GCC unroll 8") for (int i = 0; i < kWide; ++i) { r.v[i] = expression; } \
  return r;

NFT_FN Floats mul(Floats a, Floats b){NFT_WIDE(Floats, a.v[i] * b.v[i])} NFT_FN Floats
    mul(Floats a, float b){NFT_WIDE(Floats, a.v[i] * b)} NFT_FN Floats
    add(Floats a, float b){NFT_WIDE(Floats, a.v[i] + b)} NFT_FN Floats
    sub(Floats a, Floats b){NFT_WIDE(Floats, a.v[i] - b.v[i])} NFT_FN Floats
    sub(Floats a, float b){NFT_WIDE(Floats, a.v[i] - b)}

NFT_FN FloatVector vector_root(FloatVector a) {
#if defined(__AVX512F__)
  return (FloatVector)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (FloatVector)_mm256_sqrt_ps((__m256)a);
#elif defined(__x86_64__)
  return (FloatVector)_mm_sqrt_ps((__m128)a);
#else
  for (int lane = 0; lane < kVector; ++lane) a[lane] = root(a[lane]);
  return a;
#endif
}
NFT_FN Floats root(Floats a){NFT_WIDE(Floats, vector_root(a.v[i]))}

NFT_FN Floats moderate_root(Floats a) {
  return root(a);
}

NFT_FN Words32 bits_of(Floats a){NFT_WIDE(Words32, (WordVector)a.v[i])} NFT_FN Floats
    float_of(Words32 a){NFT_WIDE(Floats, (FloatVector)a.v[i])} NFT_FN Ints32
    as_signed(Words32 a){NFT_WIDE(Ints32, (IntVector)a.v[i])} NFT_FN Floats
    from_int(Ints32 a){NFT_WIDE(Floats, __builtin_convertvector(a.v[i], FloatVector))}

NFT_FN Words32 operator-(Words32 a, uint32_t b){NFT_WIDE(Words32, a.v[i] - b)} NFT_FN Words32 operator&(Words32 a,
                                                                                                        uint32_t b){
    NFT_WIDE(Words32, a.v[i] & b)} NFT_FN Words32 operator|(Words32 a, uint32_t b){
    NFT_WIDE(Words32, a.v[i] | b)} NFT_FN Words32 operator-(Words32 a, Words32 b){
    NFT_WIDE(Words32, a.v[i] - b.v[i])} NFT_FN Words32 operator>>(Words32 a, int n){
    NFT_WIDE(Words32, a.v[i] >> n)} NFT_FN Words32 operator<<(Words32 a, int n){
    NFT_WIDE(Words32, a.v[i] << n)} NFT_FN Ints32 operator>>(Ints32 a, int n){NFT_WIDE(Ints32, a.v[i] >> n)}

NFT_FN Floats one_and_fraction(Words32 a) {
  return float_of((a & 0x007fffffu) | 0x3f800000u);
}

NFT_FN Floats with_sign(Floats a, Words32 sign) {
  NFT_WIDE(Floats, (FloatVector)((WordVector)a.v[i] ^ (sign.v[i] & 0x80000000u)))
}

// A choice of lanes: a mask; or a vector whose top bits count, for instruction sets whose blends read only those.
#if defined(__AVX512F__)
struct Choices {
  __mmask16 v[kWide];
};
NFT_FN Choices has_bit(Words32 a, int bit){
    NFT_WIDE(Choices, _mm512_test_epi32_mask((__m512i)a.v[i], _mm512_set1_epi32(1 << bit)))} NFT_FN Floats
    choose(Choices first, Floats a,
           Floats b){NFT_WIDE(Floats, (FloatVector)_mm512_mask_blend_ps(first.v[i], (__m512)b.v[i], (__m512)a.v[i]))}
#elif defined(__AVX2__)
NFT_FN Words32 has_bit(Words32 a, int bit) { return a << (31 - bit); }
NFT_FN Floats choose(Words32 first, Floats a, Floats b){
    NFT_WIDE(Floats, (FloatVector)_mm256_blendv_ps((__m256)b.v[i], (__m256)a.v[i], (__m256)first.v[i]))}
#else
NFT_FN Ints32 has_bit(Words32 a, int bit) { return as_signed(a << (31 - bit)) >> 31; }
NFT_FN Floats choose(Ints32 first, Floats a, Floats b){NFT_WIDE(Floats, first.v[i] ? a.v[i] : b.v[i])}
#endif

NFT_FN Words32 load(const uint32_t* from) {
  Words32 r;
  memcpy(&r, from, sizeof r);
  return r;
}

// Stores lanes of a and b alternately, 2 * kWideLanes in all.
NFT_FN void store_alternating(Floats a, Floats b, float* out) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 8
  for (int i = 0; i < kWide; ++i) {
    _mm512_storeu_ps(out + 32 * i, _mm512_permutex2var_ps((__m512)a.v[i], low, (__m512)b.v[i]));
    _mm512_storeu_ps(out + 32 * i + 16, _mm512_permutex2var_ps((__m512)a.v[i], high, (__m512)b.v[i]));
  }
#else
  alignas(64) float first[kWideLanes], second[kWideLanes];
  memcpy(first, &a, sizeof first);
  memcpy(second, &b, sizeof second);
  for (int i = 0; i < kWideLanes; ++i) {
    out[2 * i] = first[i];
    out[2 * i + 1] = second[i];
  }
#endif
}

#undef NFT_WIDE

}  // namespace NFT_ISA
}  // namespace nft
