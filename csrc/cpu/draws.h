// The random numbers of one chunk of weights, for the current instruction set: words, normals, truncated normals, stuck-at faults.
//
// A chunk is 64 counters = 256 weights: it stays in the first-level cache from the random words to the stored result.
#pragma once

#include "../core/conductance.h"
#include "lanes.h"
#include "sampler.h"
#include "wide.h"

namespace nft {
namespace NFT_ISA {
namespace {

constexpr int kBlocks = 64;
static_assert(kBlocks * 4 == kChunk, "one Philox call serves four weights");

typedef float Lane[kChunk];

// One chip's key with what Philox derives from it.
struct ChipKey : Key {
  Schedule schedule;

  ChipKey() = default;
  ChipKey(const int64_t* row, uint32_t stream) : Key(make_key(row[0], row[1], stream)), schedule(k0, k1) {}
};

// The random words of the blocks block0 .. block0 + 63. Words 0 and 2 of a block are radii, 1 and 3 angles; kept as
// radius[2 b + p], angle[2 b + p] for pair p, so element 4 b + 2 p + 0/1 of the chunk owns radius/angle [2 b + p].
struct Words {
  alignas(64) uint32_t radius[kChunk / 2];
  alignas(64) uint32_t angle[kChunk / 2];
};

void random_words(const ChipKey& key, uint32_t slice, uint64_t block0, Words& words) {
  // 64 consecutive blocks that start at a multiple of 64 share their high bits.
  const Common common(counter1(block0, slice, key.domain), key.stream, key.draw, key.schedule);
  for (int b = 0; b < kBlocks; b += kGroups * kLanes) {
    Lanes products[kGroups], even[kGroups], odd[kGroups];
    const Lanes first = broadcast((uint64_t)kMultiplier0 * counter0(block0 + b));
    for (int g = 0; g < kGroups; ++g) products[g] = first + first_products(g);
    philox_lanes(products, common, key.schedule, even, odd);
    for (int g = 0; g < kGroups; ++g) {
      store(even[g], words.radius + 2 * (b + g * kLanes));
      store(odd[g], words.angle + 2 * (b + g * kLanes));
    }
  }
}

// Standard normals of one chunk, in element order.
void normals_of_chunk(const ChipKey& key, uint32_t slice, uint64_t block0, float* z) {
  Words words;
  random_words(key, slice, block0, words);
  for (int i = 0; i < kChunk / 2; i += kWideLanes) {
    Floats z0, z1;
    point_on_circle(normal_half_radius(load(words.radius + i)), load(words.angle + i), z0, z1);
    store_alternating(z0, z1, z + 2 * i);
  }
}

// Normals truncated to the device's tolerance: one word each.
void truncated_of_chunk(const ChipKey& key, uint32_t slice, uint64_t block0, float half_mass, float* z) {
  Words words;
  random_words(key, slice, block0, words);
  for (int i = 0; i < kChunk / 2; ++i) {
    z[2 * i] = truncated_normal(words.radius[i], half_mass);
    z[2 * i + 1] = truncated_normal(words.angle[i], half_mass);
  }
}

// Stuck-at faults of one chunk, in place.
void faults_of_chunk(const ChipKey& key, uint32_t slice, uint64_t block0, float top, const Limits& limits, float* g) {
  Words words;
  random_words(key, slice, block0, words);
  for (int i = 0; i < kChunk / 2; ++i) {
    g[2 * i] = with_fault(g[2 * i], words.radius[i], top, limits);
    g[2 * i + 1] = with_fault(g[2 * i + 1], words.angle[i], top, limits);
  }
}

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
