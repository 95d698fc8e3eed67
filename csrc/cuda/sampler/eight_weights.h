// An eight: eight neighbouring weights on the fast path. Its two quads share their key's rounds and are independent of
// each other, and its 16 bytes of codes or results are one memory access.
//
// This is the sampler's main loop. Other weights go through four_weights.h with the same bits: the last few of a layer,
// tensors at unaligned addresses, irregular steps.
#pragma once

#include "cuda/sampler/four_weights.h"

namespace nft {
namespace NFT_ISA {

template <class T>
struct alignas(16) Eight {
  T v[8];
};

// How many eights a program has, on all its chips: all whole ones, or none if they are not aligned.
NFT_FN int64_t eights_of(const cuda::Program& p) {
  const uintptr_t source = (uintptr_t)(p.codes ? p.codes : p.weight);
  const bool wide = ((source | (uintptr_t)p.out) & 15) == 0 && (p.chips == 1 || p.n % 8 == 0);
  return wide && *p.step > 0.0f ? p.n / 8 : 0;
}

// Magnitudes in units of the step. The signs of weights 2 i and 2 i
// + 1 are bits 15 and 31 of sign[i], as in two results of two bytes.
struct EightCodes {
  float code[8];
  uint32_t sign[4];
};

// One half of a word, 0 .. 32767, as float32. Set into the fraction
// of 2^23, it needs a subtraction instead of a conversion.
template <bool kUpper>
NFT_FN float half_of(uint32_t word) {
#if defined(__CUDA_ARCH__)
  const uint32_t u = __byte_perm(word, 0x4b000000u, kUpper ? 0x7632 : 0x7610);
#else
  const uint32_t u = (kUpper ? word >> 16 : word & 0xffffu) | 0x4b000000u;
#endif
  return sub(float_of(u), 8388608.0f);
}

// Both codes of a word. A negative code is stored as its ones' complement.
NFT_FN void unpack_two(uint32_t word, int i, EightCodes& c) {
  const uint32_t magnitudes = word ^ ((word >> 15 & 0x00010001u) * 0xffffu);
  c.code[2 * i] = half_of<false>(magnitudes);
  c.code[2 * i + 1] = half_of<true>(magnitudes);
  c.sign[i] = word & 0x80008000u;
}

// Codes of two bytes, in one access. (For memcpy the compiler forgets the alignment and emits sixteen.)
NFT_FN Eight<uint16_t> load_packed(const cuda::Program& p, int64_t eight) {
  return *((const Eight<uint16_t>*)p.codes + eight);
}

NFT_FN EightCodes unpacked_eight(const Eight<uint16_t>& q) {
  EightCodes c;
  for (int i = 0; i < 4; ++i) unpack_two(q.v[2 * i] | (uint32_t)q.v[2 * i + 1] << 16, i, c);
  return c;
}

NFT_FN EightCodes load_eight(const cuda::Program& p, float step, int64_t eight) {
  if (p.codes && p.code_bytes == 2) return unpacked_eight(load_packed(p, eight));
  EightCodes c;
  for (int half = 0; half < 2; ++half) {
    const Codes four = load_codes(p, step, 2 * eight + half, 4);
    for (int i = 0; i < 4; ++i) c.code[4 * half + i] = four.code[i];
    for (int i = 0; i < 2; ++i)
      c.sign[2 * half + i] = (four.sign[2 * i] >> 31 << 15) | (four.sign[2 * i + 1] & 0x80000000u);
  }
  return c;
}

// The weights without their signs. std: the only deviation of a constant table.
template <bool kConstant>
NFT_FN void eight_on_chip(const Table& t, float std, const Key& key, float step, int64_t eight, const EightCodes& c,
                          float* w) {
  float z[8];
  quad_normals(key, kSliceWeight, 2 * eight, z);
  quad_normals(key, kSliceWeight, 2 * eight + 1, z + 4);
  for (int i = 0; i < 8; ++i) {
    float mean = c.code[i], sd = std;
    if (!kConstant) {
      const int32_t q = opaque(to_int(c.code[i]));
      mean = t.values[q], sd = t.values[t.levels + q];
    }
    w[i] = mul(step, weight_in_steps(mean, sd, z[i]));
  }
}

// To global or to shared memory. Applying the sign after rounding gives the same bits.
template <cuda::OutType kOut>
NFT_FN void store_eight(typename Stored<kOut>::Type* to, const float* w, const uint32_t* sign) {
  typedef typename Stored<kOut>::Type Out;
  Eight<Out> o;
  if constexpr (kOut != cuda::OutType::kFloat32) {
    uint32_t pair[4];
    for (int i = 0; i < 4; ++i) pair[i] = stored_pair<kOut>(w[2 * i], w[2 * i + 1]) ^ sign[i];
    memcpy(&o, pair, sizeof o);
  } else {
    for (int i = 0; i < 8; ++i) o.v[i] = with_sign(w[i], i % 2 ? sign[i / 2] : sign[i / 2] << 16);
  }
  for (size_t at = 0; at < sizeof o; at += 16) {
    Quad<uint32_t> words;
    memcpy(&words, (const char*)&o + at, 16);
    put_words<4>((uint32_t*)to + at / 4, words);
  }
}

// Number `eight` of a program, with codes `c`, on the chips first_chip, first_chip + chip_stride, ...
template <cuda::OutType kOut, bool kConstant>
NFT_FN void program_eight(const cuda::Program& p, const Table& t, float step, float std, int64_t eight,
                          const EightCodes& c, int64_t first_chip, int64_t chip_stride) {
  for (int64_t chip = first_chip; chip < p.chips; chip += chip_stride) {
    float w[8];
    eight_on_chip<kConstant>(t, std, key_of(p, chip), step, eight, c, w);
    store_eight<kOut>((typename Stored<kOut>::Type*)p.out + chip * p.n + 8 * eight, w, c.sign);
  }
}

}  // namespace NFT_ISA
}  // namespace nft
