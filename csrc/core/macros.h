// Host+device building blocks: rounded arithmetic, bit casts, the namespace of the current instruction set.
//
// Every function of csrc/core has internal linkage and lives in nft::NFT_ISA, so the same header compiled with other
// machine flags never merges with another copy of itself at link time (an AVX-512 body behind a scalar caller would
// be an illegal instruction). No standard-library templates in here for the same reason.
//
// Bit-identity rests on one rule: each multiply, add, divide and square root is rounded to float32 by itself. On the
// host -ffp-contract=off ensures it; on CUDA the intrinsics below do. No result of the noise depends on an fma. An fma
// is used only inside operations that are proven to give the rounded result: the quantizer's division on the CPU
// (cpu/sampler/step_reciprocal.h) and the square root on CUDA.
#pragma once

#include <stdint.h>
#include <string.h>

#ifndef NFT_ISA
#define NFT_ISA generic
#endif

#if defined(__CUDACC__)
#define NFT_FN static __host__ __device__ __forceinline__
#else
#define NFT_FN static inline __attribute__((always_inline))
#endif

namespace nft {
namespace NFT_ISA {

#if defined(__CUDA_ARCH__)
NFT_FN float mul(float a, float b) { return __fmul_rn(a, b); }
NFT_FN float add(float a, float b) { return __fadd_rn(a, b); }
NFT_FN float sub(float a, float b) { return __fsub_rn(a, b); }
NFT_FN float div(float a, float b) { return __fdiv_rn(a, b); }
NFT_FN float root(float a) { return __fsqrt_rn(a); }
NFT_FN uint32_t bits_of(float a) { return __float_as_uint(a); }
NFT_FN float float_of(uint32_t a) { return __uint_as_float(a); }
NFT_FN float from_int(int32_t a) { return __int2float_rn(a); }
NFT_FN int32_t to_int(float a) { return __float2int_rz(a); }
#else
NFT_FN float mul(float a, float b) { return a * b; }
NFT_FN float add(float a, float b) { return a + b; }
NFT_FN float sub(float a, float b) { return a - b; }
NFT_FN float div(float a, float b) { return a / b; }
NFT_FN float root(float a) { return __builtin_sqrtf(a); }
NFT_FN uint32_t bits_of(float a) {
  uint32_t u;
  memcpy(&u, &a, sizeof u);
  return u;
}
NFT_FN float float_of(uint32_t a) {
  float f;
  memcpy(&f, &a, sizeof f);
  return f;
}
NFT_FN float from_int(int32_t a) { return (float)a; }
NFT_FN int32_t to_int(float a) { return (int32_t)a; }
#endif

// Selects without branches; the comparison is false for NaN, so NaN bounds never occur (they are checked in Python).
NFT_FN float least(float a, float b) { return b < a ? b : a; }
NFT_FN float most(float a, float b) { return b > a ? b : a; }

// Functions that vectors of lanes (cpu/simd/vectors.h) write differently.
NFT_FN int32_t as_signed(uint32_t a) { return (int32_t)a; }
NFT_FN bool has_bit(uint32_t a, int bit) { return (int32_t)(a << (31 - bit)) < 0; }
NFT_FN float choose(bool first, float a, float b) { return first ? a : b; }

// Square root of zero or of a number within 2^-100 .. 2^100.
NFT_FN float moderate_root(float a) {
#if defined(__CUDA_ARCH__)
  // The operations of __fsqrt_rn on these numbers, hence the same bits
  // (csrc/tests/cuda/exact_root.cu tries every number), without its branch for other
  // numbers: the compiler cannot interleave two normals' instructions across a branch.
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(fmaxf(a, 0x1p-100f)));
  const float s = __fmul_rn(a, r);
  return __fmaf_rn(__fmaf_rn(-s, s, a), __fmul_rn(r, 0.5f), s);
#else
  return root(a);
#endif
}

// 1 + the lower 23 bits of `a` as a fraction.
NFT_FN float one_and_fraction(uint32_t a) {
#if defined(__CUDA_ARCH__)
  uint32_t u;  // one instruction; the compiler would emit two
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(u) : "r"(a), "r"(0x007fffffu), "r"(0x3f800000u));
  return float_of(u);
#else
  return float_of((a & 0x007fffffu) | 0x3f800000u);
#endif
}

// The magnitude of `a` with the sign bit of `sign`.
NFT_FN float copy_sign(float a, uint32_t sign) {
#if defined(__CUDA_ARCH__)
  return copysignf(a, float_of(sign));
#else
  return __builtin_copysignf(a, float_of(sign));
#endif
}

// Sign bit of `sign` onto the magnitude and sign of `a`: a or -a, exactly.
NFT_FN float with_sign(float a, uint32_t sign) { return float_of(bits_of(a) ^ (sign & 0x80000000u)); }

// float32 to bfloat16, round to nearest, ties to even; NaN stays NaN.
NFT_FN uint16_t to_bfloat16(float a) {
  uint32_t u = bits_of(a);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

}  // namespace NFT_ISA
}  // namespace nft
