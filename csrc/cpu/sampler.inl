// The sampler, written once as plain loops of constant length and compiled once per instruction set (the including file
// defines NFT_ISA; CMake gives it its machine flags). The compiler vectorises; the results are the same bits everywhere.
//
// A chunk is 64 counters = 256 weights: it stays in the first-level cache from the random words to the stored result.

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

// Packed codes of one chunk (core/quantize.h): those given, or the weights' own, quantized into `local`. Short last chunks are
// padded with zeros there. Codes are two or four bytes: reading them again for every chip is cheaper than keeping floats.
template <class Packed>
const Packed* codes_of_chunk(const Program& p, int64_t first, int count, Packed* local) {
  if (p.codes) {
    const Packed* codes = (const Packed*)p.codes + first;
    if (count == kChunk) return codes;
    memset(local, 0, kChunk * sizeof(Packed));
    memcpy(local, codes, count * sizeof(Packed));
    return local;
  }
  const float top = from_int((1 << p.weight_bits) - 1);
  alignas(64) float padded[kChunk];
  const float* w = p.weight + first;
  if (count < kChunk) {
    memset(padded, 0, sizeof padded);
    memcpy(padded, w, count * sizeof(float));
    w = padded;
  }
  for (int i = 0; i < kChunk; ++i) local[i] = (Packed)pack_code(code_of(w[i], p.step, top), sign_of(w[i]));
  return local;
}

// Fast path: one normal a weight.
template <class Packed>
void fast_chunk(const Program& p, const ChipKey& key, uint64_t block0, const Packed* codes, float* __restrict w) {
  alignas(64) Lane z;
  normals_of_chunk(key, kSliceWeight, block0, z);
  if (p.constant_table) {
    const float std = p.table[1 << p.weight_bits], step = p.step;
    for (int i = 0; i < kChunk; ++i)
      w[i] = programmed(weight_in_steps(from_int(code_magnitude(codes[i])), std, z[i]), step, code_sign(codes[i]));
    return;
  }
  const float* mean = p.table;
  const float* std = p.table + (1 << p.weight_bits);
  if (p.plain_means) {  // presets: half the gathers
    for (int i = 0; i < kChunk; ++i) {
      const int32_t q = code_magnitude(codes[i]);
      w[i] = programmed(weight_in_steps(from_int(q), std[q], z[i]), p.step, code_sign(codes[i]));
    }
    return;
  }
  for (int i = 0; i < kChunk; ++i) {
    const int32_t q = code_magnitude(codes[i]);
    w[i] = programmed(weight_in_steps(mean[q], std[q], z[i]), p.step, code_sign(codes[i]));
  }
}

// |weight| / step of a chunk; returns the largest |weight|.
uint32_t divided(const float* __restrict weight, float step, float* __restrict quotient) {
  int32_t largest = 0;  // signed, as SSE2 compares
  for (int i = 0; i < kChunk; ++i) {
    quotient[i] = quotient_of(weight[i], step);
    const int32_t u = (int32_t)(bits_of(weight[i]) & 0x7fffffffu);
    largest = u > largest ? u : largest;
  }
  return (uint32_t)largest;
}

// Fast path from weights for one chip: no code is stored. The divisions come first, in a loop with little else, so that the
// divider works through them while the random words are made. Returns the largest |weight|.
uint32_t fresh_chunk(const Program& p, const ChipKey& key, uint64_t block0, const float* __restrict weight, float* __restrict w) {
  alignas(64) Lane quotient, z;
  const float std = p.table[1 << p.weight_bits], step = p.step, top = from_int((1 << p.weight_bits) - 1);
  const uint32_t largest = divided(weight, step, quotient);
  normals_of_chunk(key, kSliceWeight, block0, z);
  for (int i = 0; i < kChunk; ++i)
    w[i] = programmed(weight_in_steps(round_quotient(quotient[i], top), std, z[i]), step, sign_of(weight[i]));
  return largest;
}

// sum += direction * 2^(jK) * g_j for device j of every weight of the chunk; `idle` devices hold level 0.
template <class Packed>
void add_device(const Program& p, const ChipKey& key, uint64_t block0, int j, bool idle, const Limits& limits, const Packed* codes,
                float* sum) {
  alignas(64) Lane z;
  const uint32_t slice = (idle ? kSliceIdle : kSliceActive) + (uint32_t)j;
  if (limits.half_mass > 0.0f)
    truncated_of_chunk(key, slice, block0, limits.half_mass, z);
  else
    normals_of_chunk(key, slice, block0, z);
  const int levels = 1 << p.device_bits;
  const float* mean = p.table;
  const float* sd = p.table + levels;
  const int shift = j * p.device_bits;
  const int32_t mask = idle ? 0 : levels - 1;
  alignas(64) Lane g;
  if (p.constant_table) {
    const float constant = sd[0];
    for (int i = 0; i < kChunk; ++i)
      g[i] = conductance(from_int((code_magnitude(codes[i]) >> shift) & mask), constant, z[i], limits);
  } else {
    for (int i = 0; i < kChunk; ++i) {
      const int32_t level = (code_magnitude(codes[i]) >> shift) & mask;
      g[i] = conductance(mean[level], sd[level], z[i], limits);
    }
  }
  if (limits.stuck_any > 0.0f)
    faults_of_chunk(key, slice + (kSliceFault - kSliceActive), block0, from_int(levels - 1), limits, g);
  const float place = from_int(1 << shift);  // 2^(jK): the product is exact
  if (idle)
    for (int i = 0; i < kChunk; ++i) sum[i] = sub(sum[i], mul(g[i], place));
  else
    for (int i = 0; i < kChunk; ++i) sum[i] = add(sum[i], mul(g[i], place));
}

// Per-device path: M/K devices a weight (twice that many in a differential pair).
template <class Packed>
void device_chunk(const Program& p, const ChipKey& key, uint64_t block0, const Packed* codes, float* __restrict w) {
  const Limits limits = limits_of(p.table, p.device_bits);
  const int devices = p.weight_bits / p.device_bits;
  alignas(64) Lane sum = {};
  for (int j = 0; j < devices; ++j) add_device(p, key, block0, j, false, limits, codes, sum);
  if (p.mapping == kMappingDifferential)
    for (int j = 0; j < devices; ++j) add_device(p, key, block0, j, true, limits, codes, sum);
  for (int i = 0; i < kChunk; ++i) w[i] = programmed(sum[i], p.step, code_sign(codes[i]));
}

uint32_t largest_bits(const float* weight, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = bits_of(weight[i]) & 0x7fffffffu;
    largest = u > largest ? u : largest;
  }
  return largest;
}

void look(const Program& p, int64_t first, int64_t count) {
  const uint32_t found = largest_bits(p.weight + first, count);
  if (found > *p.largest) *p.largest = found;
}

// One chunk on one chip into w [kChunk].
template <class Packed>
void chunk_on_chip(const Program& p, const ChipKey& key, int64_t chunk, const Packed* codes, float* w) {
  const uint64_t block0 = (uint64_t)chunk * kBlocks;
  if (p.path == kPathFast)
    fast_chunk(p, key, block0, codes, w);
  else if (p.path == kPathDevice)
    device_chunk(p, key, block0, codes, w);
  else
    for (int i = 0; i < kChunk; ++i)
      w[i] = programmed(from_int(code_magnitude(codes[i])), p.step, code_sign(codes[i]));
}

// Chips whose keys are prepared at a time.
constexpr int kChipsAtOnce = 8;

template <class Packed>
void program_packed(const Program& p, const ChipKey* keys, int first_chip, int chips, int64_t begin, int64_t end) {
  alignas(64) Packed packed[kChunk];
  alignas(64) Lane local;
  alignas(64) uint16_t half[kChunk];
  const bool fresh = !p.codes && chips == 1 && p.path == kPathFast && p.constant_table && p.out_type == OutType::kFloat32;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunk;
    const int count = p.n - first < kChunk ? (int)(p.n - first) : (int)kChunk;
    if (fresh && count == kChunk) {
      const uint32_t found =
          fresh_chunk(p, keys[0], (uint64_t)chunk * kBlocks, p.weight + first, (float*)p.out + first_chip * p.n + first);
      if (p.largest && found > *p.largest) *p.largest = found;
      continue;
    }
    if (p.largest && first_chip == 0) look(p, first, count);
    const Packed* codes = codes_of_chunk(p, first, count, packed);
    for (int chip = 0; chip < chips; ++chip) {
      const int64_t at = (first_chip + chip) * p.n + first;
      if (p.out_type == OutType::kFloat32) {
        float* out = (float*)p.out + at;
        chunk_on_chip(p, keys[chip], chunk, codes, count == kChunk ? out : local);
        if (count < kChunk) memcpy(out, local, count * sizeof(float));
      } else {
        chunk_on_chip(p, keys[chip], chunk, codes, local);
        for (int i = 0; i < kChunk; ++i) half[i] = to_bfloat16(local[i]);
        memcpy((uint16_t*)p.out + at, half, count * sizeof(uint16_t));
      }
    }
  }
}

template <class Packed>
void program_packed(const Program& p, int64_t begin, int64_t end) {
  for (int first = 0; first < p.chips; first += kChipsAtOnce) {
    const int chips = p.chips - first < kChipsAtOnce ? p.chips - first : kChipsAtOnce;
    ChipKey keys[kChipsAtOnce];
    for (int chip = 0; chip < chips; ++chip) keys[chip] = ChipKey(p.keys + 2 * (first + chip), p.stream);
    program_packed<Packed>(p, keys, first, chips, begin, end);
  }
}

void program_chunks(const Program& p, int64_t begin, int64_t end) {
  if (begin >= end) return;
  if (step_is_zero(p.step)) {
    const int64_t first = begin * kChunk, last = end * kChunk < p.n ? end * kChunk : p.n;
    const int64_t bytes = p.out_type == OutType::kFloat32 ? 4 : 2;
    if (p.largest) look(p, first, last - first);
    for (int chip = 0; chip < p.chips; ++chip)
      memset((char*)p.out + (chip * p.n + first) * bytes, 0, (size_t)((last - first) * bytes));
  } else if (p.weight_bits <= 15) {
    program_packed<int16_t>(p, begin, end);
  } else {
    program_packed<int32_t>(p, begin, end);
  }
}

float step_from(float abs_max, int weight_bits) { return step_of(abs_max, weight_bits); }

void quantize_all(const float* weight, int64_t n, float step, int weight_bits, void* codes, int code_bytes) {
  const float top = from_int((1 << weight_bits) - 1);
  if (step_is_zero(step)) {
    memset(codes, 0, (size_t)n * code_bytes);
  } else if (code_bytes == 2) {
    for (int64_t i = 0; i < n; ++i)
      ((int16_t*)codes)[i] = (int16_t)pack_code(code_of(weight[i], step, top), sign_of(weight[i]));
  } else {
    for (int64_t i = 0; i < n; ++i)
      ((int32_t*)codes)[i] = pack_code(code_of(weight[i], step, top), sign_of(weight[i]));
  }
}

void normals_of(const int64_t* row, uint32_t stream, uint32_t slice, int64_t n, float* out) {
  const ChipKey key(row, stream);
  alignas(64) Lane z;
  for (int64_t first = 0; first < n; first += kChunk) {
    normals_of_chunk(key, slice, (uint64_t)(first / 4), z);
    memcpy(out + first, z, (n - first < kChunk ? n - first : kChunk) * sizeof(float));
  }
}

// Through the same lanes as the noise, so that the published known answers hold for what the sampler really runs: counter i in
// lane i modulo their number, among its neighbours.
void philox_of(const uint32_t* counters, const uint32_t* key, int64_t n, uint32_t* words) {
  constexpr int kAtOnce = kGroups * kLanes;
  const Schedule schedule(key[0], key[1]);
  for (int64_t i = 0; i < n; ++i, counters += 4, words += 4) {
    const int place = (int)(i % kAtOnce), g = place / kLanes, lane = place % kLanes;
    const Lanes first = broadcast((uint64_t)kMultiplier0 * counters[0] - (uint64_t)kMultiplier0 * (uint32_t)place);
    Lanes products[kGroups], even[kGroups], odd[kGroups];
    for (int k = 0; k < kGroups; ++k) products[k] = first + first_products(k);
    philox_lanes(products, Common(counters[1], counters[2], counters[3], schedule), schedule, even, odd);
    words[0] = (uint32_t)even[g][lane];
    words[1] = (uint32_t)odd[g][lane];
    words[2] = (uint32_t)(even[g][lane] >> 32);
    words[3] = (uint32_t)(odd[g][lane] >> 32);
  }
}

}  // namespace

#define NFT_TEXT_(x) #x
#define NFT_TEXT(x) NFT_TEXT_(x)
extern const Kernels table;
const Kernels table = {NFT_TEXT(NFT_ISA), largest_bits, step_from, quantize_all, program_chunks, normals_of, philox_of};

}  // namespace NFT_ISA
}  // namespace nft
