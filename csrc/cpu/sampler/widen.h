// 16-bit weights as float32, exactly: widened chunk by chunk in the first-level cache, never in memory.
#pragma once

#include "core/macros.h"
#include "cpu/sampler/sampler.h"

namespace nft {
namespace NFT_ISA {
namespace {

typedef float Lane[kChunk];

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

NFT_FN float widened(float weight) { return weight; }
NFT_FN float widened(BFloat16 weight) { return float_of((uint32_t)weight.bits << 16); }

// The exponent's bias is 112 less than float32's; subnormal numbers count units of 2^-24.
NFT_FN float widened(Float16 weight) {
  const uint32_t magnitude = weight.bits & 0x7fffu, sign = (uint32_t)(weight.bits & 0x8000u) << 16;
  const uint32_t bias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;  // infinity and NaN have the largest exponent
  const float small = mul(from_int((int32_t)magnitude), 0x1p-24f), normal = float_of((magnitude << 13) + bias);
  return float_of(bits_of(magnitude < 0x400u ? small : normal) | sign);
}

// f(pointer to the weights' type), for a loop per type.
template <class F>
NFT_FN auto with_type(Weights weights, const F& f) {
  if (weights.type == WeightType::kBFloat16) return f((const BFloat16*)weights.data);
  if (weights.type == WeightType::kFloat16) return f((const Float16*)weights.data);
  return f((const float*)weights.data);
}

// Prefetches the next chunk: the processor's own prefetchers stop at the end of a page, which is four chunks.
template <class T>
NFT_FN void ask_for_next(const T* chunk) {
  constexpr int kLine = 64;
  for (int i = 0; i < (int)(kChunk * sizeof(T)); i += kLine)
    __builtin_prefetch((const char*)(chunk + kChunk) + i, 0, 3);
}

// One chunk of `count` weights as float32: the weights themselves, or in `local`, padded with zeros.
const float* floats_of_chunk(Weights weights, int count, float* local) {
  return with_type(weights, [&](const auto* from) {
    ask_for_next(from);
    if (sizeof *from == sizeof(float) && count == kChunk) return (const float*)from;
    if (count < kChunk) memset(local, 0, kChunk * sizeof(float));
    for (int i = 0; i < count; ++i) local[i] = widened(from[i]);
    return (const float*)local;
  });
}

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
