// The random numbers of one chunk of weights, for the current
// instruction set: words, normals, truncated normals, stuck-at faults.
//
// A chunk is 64 counters = 64 quads = 256 weights. It stays in the
// first-level cache from the random words to the stored result.
#pragma once

#include "core/conductance.h"
#include "cpu/simd/lanes.h"
#include "cpu/sampler/widen.h"
#include "cpu/simd/vectors.h"

namespace nft {
namespace NFT_ISA {
namespace {

constexpr int kQuads = 64;
static_assert(kQuads * 4 == kChunk, "one Philox call serves four weights");

// One chip's key, with its round keys.
struct ChipKey : Key {
  Schedule schedule;

  ChipKey() = default;
  ChipKey(const int64_t* row, uint32_t stream) : Key(make_key(row[0], row[1], stream)), schedule(k0, k1) {}
};

// The random words of the quads quad0 .. quad0 + 63. Words 0 and 2 of a quad are radii, words 1 and 3 angles. Pair p of
// quad b is at radius[2 b + p] and angle[2 b + p], for elements 4 b + 2 p and 4 b + 2 p + 1 of the chunk.
struct Words {
  alignas(64) uint32_t radius[kChunk / 2];
  alignas(64) uint32_t angle[kChunk / 2];
};

void random_words(const ChipKey& key, uint32_t slice, uint64_t quad0, Words& words) {
  // 64 consecutive quads from a multiple of 64 on share their high bits.
  const Common common(counter1(quad0, slice, key.domain), key.stream, key.draw, key.schedule);
  for (int b = 0; b < kQuads; b += kGroups * kLanes) {
    Lanes products[kGroups], even[kGroups], odd[kGroups];
    const Lanes first = broadcast((uint64_t)kMultiplier0 * counter0(quad0 + b));
    for (int g = 0; g < kGroups; ++g) products[g] = first + first_products(g);
    philox_lanes(products, common, key.schedule, even, odd);
    for (int g = 0; g < kGroups; ++g) {
      store(even[g], words.radius + 2 * (b + g * kLanes));
      store(odd[g], words.angle + 2 * (b + g * kLanes));
    }
  }
}

// Standard normals of one chunk, in element order.
void normals_of_chunk(const ChipKey& key, uint32_t slice, uint64_t quad0, float* z) {
  Words words;
  random_words(key, slice, quad0, words);
  for (int i = 0; i < kChunk / 2; i += kWideLanes) {
    Floats z0, z1;
    point_on_circle(normal_half_radius(load(words.radius + i)), load(words.angle + i), z0, z1);
    store_alternating(z0, z1, z + 2 * i);
  }
}

// Normals truncated to the device's tolerance: one word per normal.
void truncated_of_chunk(const ChipKey& key, uint32_t slice, uint64_t quad0, float half_mass, float* z) {
  Words words;
  random_words(key, slice, quad0, words);
  for (int i = 0; i < kChunk / 2; ++i) {
    z[2 * i] = truncated_normal(words.radius[i], half_mass);
    z[2 * i + 1] = truncated_normal(words.angle[i], half_mass);
  }
}

// Stuck-at faults of one chunk, in place.
void faults_of_chunk(const ChipKey& key, uint32_t slice, uint64_t quad0, float top, const Limits& limits, float* g) {
  Words words;
  random_words(key, slice, quad0, words);
  for (int i = 0; i < kChunk / 2; ++i) {
    g[2 * i] = with_fault(g[2 * i], words.radius[i], top, limits);
    g[2 * i + 1] = with_fault(g[2 * i + 1], words.angle[i], top, limits);
  }
}

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
