// Memory access by four neighbouring numbers (one wide access if all four exist and the address is aligned), and the
// number formats of programmed weights.
#pragma once

#include "core/macros.h"

namespace nft {
namespace cuda {

enum class OutType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

}  // namespace cuda

namespace NFT_ISA {

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

template <class T>
NFT_FN bool is_wide(const T* p, int count) {
  return count == 4 && ((uintptr_t)p & (sizeof(Quad<T>) - 1)) == 0;
}

// The `count` (1..4) numbers at p, then zeros.
template <class T>
NFT_FN Quad<T> load(const T* p, int count) {
  if (is_wide(p, count)) return *reinterpret_cast<const Quad<T>*>(p);
  Quad<T> q = {};
  for (int i = 0; i < 4; ++i)
    if (i < count) q.v[i] = p[i];
  return q;
}

// Writes 2 or 4 words to an address that is a multiple of their size, in global or shared memory. Inline assembly,
// since the compiler splits a plain assignment into four instructions.
template <int kWords>
NFT_FN void put_words(void* p, const Quad<uint32_t>& w) {
#if defined(__CUDA_ARCH__)
  if constexpr (kWords == 4)
    asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w.v[0]), "r"(w.v[1]), "r"(w.v[2]), "r"(w.v[3])
                 : "memory");
  else
    asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(w.v[0]), "r"(w.v[1]) : "memory");
#else
  memcpy(p, &w, 4 * kWords);
#endif
}

template <class T>
NFT_FN void store_wide(T* p, const Quad<T>& q) {
  Quad<uint32_t> w = {};
  memcpy(&w, &q, sizeof q);
  put_words<sizeof q / 4>(p, w);
}

template <class T>
NFT_FN void store(T* p, int count, const Quad<T>& q) {
  if (is_wide(p, count)) {
    store_wide(p, q);
    return;
  }
  for (int i = 0; i < 4; ++i)
    if (i < count) p[i] = q.v[i];
}

// float32 to IEEE half, round to nearest, ties to even: what the processor's own conversion gives.
NFT_FN uint16_t to_float16(float a) {
  const uint32_t u = bits_of(a) & 0x7fffffffu;
  const uint32_t sign = (bits_of(a) >> 16) & 0x8000u;
  if (u > 0x7f800000u) return 0x7e00u;                      // NaN
  if (u >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);  // 2^16 and more: infinity
  if (u < 0x38800000u)                                      // below 2^-14: a subnormal half; the sum
    return (uint16_t)(sign |
                      (bits_of(add(float_of(u), 0.5f)) - 0x3f000000u));  // with 1/2 rounds at its last place, 2^-24
  return (uint16_t)(sign |
                    ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13));  // 65520 and more carry into infinity
}

// One number as it is stored. On the device the processor's
// conversions do it; they round alike (a NaN's payload differs).
template <cuda::OutType kOut>
struct Stored {
  typedef uint16_t Type;
  NFT_FN uint16_t from(float a) {
    uint16_t bits;
#if defined(__CUDA_ARCH__)
    if (kOut == cuda::OutType::kBFloat16)
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(a));
    else
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(a));
#else
    bits = kOut == cuda::OutType::kBFloat16 ? to_bfloat16(a) : to_float16(a);
#endif
    return bits;
  }
};

// Two numbers of two bytes in one word, the first in the lower half: one instruction on the GPU.
template <cuda::OutType kOut>
NFT_FN uint32_t stored_pair(float first, float second) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  if (kOut == cuda::OutType::kBFloat16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return Stored<kOut>::from(first) | (uint32_t)Stored<kOut>::from(second) << 16;
#endif
}

template <>
struct Stored<cuda::OutType::kFloat32> {
  typedef float Type;
  NFT_FN float from(float a) { return a; }
};

}  // namespace NFT_ISA
}  // namespace nft
