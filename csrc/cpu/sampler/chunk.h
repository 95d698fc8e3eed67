// One chunk of weights on one chip, for the current instruction
// set: from weights or codes to programmed weights, on either path.
//
// Plain loops of constant length, which the compiler vectorises.
// The results have the same bits for every instruction set.
#pragma once

#include "cpu/sampler/draws.h"
#include "cpu/simd/table_lookup.h"
#include "cpu/sampler/step_runs.h"

namespace nft {
namespace NFT_ISA {
namespace {

// Packed codes of one chunk (core/quantize.h): the given ones, or the quantized
// weights, in `local`. A short last chunk is padded with zeros there. Codes take two
// or four bytes: reading them again for every chip is cheaper than keeping floats.
template <class Packed, class Steps>
const Packed* codes_of_chunk(const Program& p, const Steps& step, int64_t first, int count, Packed* local) {
  if (p.codes) {
    const Packed* codes = (const Packed*)p.codes + first;
    ask_for_next(codes);
    if (count == kChunk) return codes;
    memset(local, 0, kChunk * sizeof(Packed));
    memcpy(local, codes, count * sizeof(Packed));
    return local;
  }
  const float top = from_int((1 << p.weight_bits) - 1);
  alignas(64) Lane wide;
  const float* w = floats_of_chunk(p.weight + first, count, wide);
  for (int i = 0; i < kChunk; ++i) local[i] = (Packed)pack_code(code_of(w[i], step.at(i), top), sign_of(w[i]));
  return local;
}

// Mean and deviation for every index of a chunk. An index is a
// code on the fast path, a device's level on the per-device path.
void look_up_table(const Program& p, int entries, const int32_t* index, float* mean, float* std) {
  if (p.plain_means)
    for (int i = 0; i < kChunk; ++i) mean[i] = from_int(index[i]);
  else
    look_up(p.table, entries, index, kChunk, mean);
  look_up(p.table + entries, entries, index, kChunk, std);
}

// Fast path: one normal per weight.
template <class Packed, class Steps>
void fast_chunk(const Program& p, const Steps& step, const ChipKey& key, uint64_t quad0, const Packed* codes,
                float* __restrict w) {
  alignas(64) Lane z;
  normals_of_chunk(key, kSliceWeight, quad0, z);
  if (p.constant_table) {
    const float std = p.table[1 << p.weight_bits];
    for (int i = 0; i < kChunk; ++i)
      w[i] =
          programmed(weight_in_steps(from_int(code_magnitude(codes[i])), std, z[i]), step.at(i), code_sign(codes[i]));
    return;
  }
  alignas(64) int32_t q[kChunk];
  alignas(64) Lane mean, std;
  for (int i = 0; i < kChunk; ++i) q[i] = code_magnitude(codes[i]);
  look_up_table(p, 1 << p.weight_bits, q, mean, std);
  for (int i = 0; i < kChunk; ++i)
    w[i] = programmed(weight_in_steps(mean[i], std[i], z[i]), step.at(i), code_sign(codes[i]));
}

// The larger of two bit patterns: `largest` and that of |weight|.
NFT_FN int32_t larger(int32_t largest, float weight) {
  const int32_t u = (int32_t)bits_of(magnitude_of(weight));
  return u > largest ? u : largest;
}

// From codes and normals to programmed weights. Returns max|W| of the chunk.
template <class Steps, class Code>
uint32_t fresh_weights(const Program& p, const Steps& step, const float* __restrict weight, const float* __restrict z,
                       const Code& code, float* __restrict w) {
  int32_t largest = 0;  // signed, since SSE2 compares signed numbers
  if (p.constant_table) {
    const float std = p.table[1 << p.weight_bits];
    for (int i = 0; i < kChunk; ++i) {
      largest = larger(largest, weight[i]);
      w[i] = programmed(weight_in_steps(code(i), std, z[i]), step.at(i), sign_of(weight[i]));
    }
    return (uint32_t)largest;
  }
  alignas(64) int32_t q[kChunk];
  alignas(64) Lane mean, std;
  for (int i = 0; i < kChunk; ++i) {
    largest = larger(largest, weight[i]);
    q[i] = to_int(code(i));
  }
  look_up_table(p, 1 << p.weight_bits, q, mean, std);
  for (int i = 0; i < kChunk; ++i)
    w[i] = programmed(weight_in_steps(mean[i], std[i], z[i]), step.at(i), sign_of(weight[i]));
  return (uint32_t)largest;
}

// The same for a table without lookups and bounded codes: no code needs a limit, so the quotients are rounded at once.
NFT_FN uint32_t bounded_weights(const Program& p, const float* __restrict weight, const float* __restrict z,
                                float* __restrict w) {
  const float step = p.step, std = p.table[1 << p.weight_bits];
  const Reciprocal r = p.reciprocal;
  int32_t largest = 0;
  for (int i = 0; i < kChunk; ++i) {
    largest = larger(largest, weight[i]);
    const float code = rounded(quotient_by(magnitude_of(weight[i]), r));
    w[i] = programmed(weight_in_steps(code, std, z[i]), step, sign_of(weight[i]));
  }
  return (uint32_t)largest;
}

// Fast path from weights, for one chip: no code is stored. Returns max|W| of the
// chunk. Of all functions of the sampler, only this one and reciprocal_of may
// use an fma (for quotients); python_tests' test_nm.py checks the machine code.
__attribute__((noinline)) uint32_t fresh_chunk(const Program& p, const ChipKey& key, uint64_t quad0,
                                               const float* __restrict weight, float* __restrict w) {
  const OneStep step{p.step, p.reciprocal};
  const float top = from_int((1 << p.weight_bits) - 1);
  alignas(64) Lane z;
  if (p.reciprocal.high != 0.0f) {
    const Reciprocal r = p.reciprocal;
    normals_of_chunk(key, kSliceWeight, quad0, z);
    ask_for_next(w);
    if (p.bounded && p.constant_table) return bounded_weights(p, weight, z, w);
    return fresh_weights(
        p, step, weight, z, [=](int i) { return round_quotient(quotient_by(magnitude_of(weight[i]), r), top); }, w);
  }
  // The divisions come first, in a loop of their own: the divider works on them while the random words are made.
  alignas(64) Lane quotient;
  for (int i = 0; i < kChunk; ++i) quotient[i] = quotient_of(weight[i], p.step);
  normals_of_chunk(key, kSliceWeight, quad0, z);
  ask_for_next(w);
  return fresh_weights(p, step, weight, z, [&](int i) { return round_quotient(quotient[i], top); }, w);
}

// The same with a step per run, for a table without lookups and bounded codes.
template <class Steps>
NFT_FN void bounded_steps(const Program& p, const Steps step, const float* __restrict weight, const float* __restrict z,
                          float* __restrict w) {
  const float std = p.table[1 << p.weight_bits];
  for (int i = 0; i < kChunk; ++i) {
    const float code = rounded(step.quotient(magnitude_of(weight[i]), i));
    w[i] = programmed(weight_in_steps(code, std, z[i]), step.at(i), sign_of(weight[i]));
  }
}

// The same for any table.
template <class Steps>
NFT_FN void fresh_steps(const Program& p, const Steps step, const ChipKey& key, uint64_t quad0,
                        const float* __restrict weight, float* __restrict w) {
  const float top = from_int((1 << p.weight_bits) - 1);
  alignas(64) Lane z;
  alignas(64) Lane quotient;
  for (int i = 0; i < kChunk; ++i) quotient[i] = quotient_of(weight[i], step.at(i));
  normals_of_chunk(key, kSliceWeight, quad0, z);
  ask_for_next(w);
  fresh_weights(p, step, weight, z, [&](int i) { return round_quotient(quotient[i], top); }, w);
}

// Fast path from weights with a step per run, for one chip.
__attribute__((noinline)) void fresh_run(const Program& p, const StepRuns& runs, const ChipKey& key, uint64_t quad0,
                                         const float* __restrict weight, float* __restrict w) {
  if (runs.reciprocal && p.bounded && p.constant_table) {
    alignas(64) Lane z;
    normals_of_chunk(key, kSliceWeight, quad0, z);
    ask_for_next(w);
    return runs.uniform ? bounded_steps(p, runs.one, weight, z, w) : bounded_steps(p, runs.many(), weight, z, w);
  }
  if (runs.uniform)
    fresh_steps(p, runs.one, key, quad0, weight, w);
  else
    fresh_steps(p, runs.many(), key, quad0, weight, w);
}

// sum += direction * 2^(jK) * g_j for device j of every weight of the chunk; `idle` devices hold level 0.
template <class Packed>
void add_device(const Program& p, const ChipKey& key, uint64_t quad0, int j, bool idle, const Limits& limits,
                const Packed* codes, float* sum) {
  alignas(64) Lane z;
  const uint32_t slice = (idle ? kSliceIdle : kSliceActive) + (uint32_t)j;
  if (limits.half_mass > 0.0f)
    truncated_of_chunk(key, slice, quad0, limits.half_mass, z);
  else
    normals_of_chunk(key, slice, quad0, z);
  const int levels = 1 << p.device_bits;
  const int shift = j * p.device_bits;
  const int32_t mask = idle ? 0 : levels - 1;
  alignas(64) Lane g;
  if (p.constant_table) {
    const float sd = p.table[levels];
    for (int i = 0; i < kChunk; ++i)
      g[i] = conductance(from_int((code_magnitude(codes[i]) >> shift) & mask), sd, z[i], limits);
  } else {
    alignas(64) int32_t level[kChunk];
    alignas(64) Lane mean, sd;
    for (int i = 0; i < kChunk; ++i) level[i] = (code_magnitude(codes[i]) >> shift) & mask;
    look_up_table(p, levels, level, mean, sd);
    for (int i = 0; i < kChunk; ++i) g[i] = conductance(mean[i], sd[i], z[i], limits);
  }
  if (limits.stuck_any > 0.0f)
    faults_of_chunk(key, slice + (kSliceFault - kSliceActive), quad0, from_int(levels - 1), limits, g);
  const float place = from_int(1 << shift);  // 2^(jK): the product is exact
  if (idle)
    for (int i = 0; i < kChunk; ++i) sum[i] = sub(sum[i], mul(g[i], place));
  else
    for (int i = 0; i < kChunk; ++i) sum[i] = add(sum[i], mul(g[i], place));
}

// Per-device path: M/K devices per weight, twice as many in a differential pair.
template <class Packed, class Steps>
void device_chunk(const Program& p, const Steps& step, const ChipKey& key, uint64_t quad0, const Packed* codes,
                  float* __restrict w) {
  const Limits limits = limits_of(p.table, p.device_bits);
  const int devices = p.weight_bits / p.device_bits;
  alignas(64) Lane sum = {};
  for (int j = 0; j < devices; ++j) add_device(p, key, quad0, j, false, limits, codes, sum);
  if (p.mapping == kMappingDifferential)
    for (int j = 0; j < devices; ++j) add_device(p, key, quad0, j, true, limits, codes, sum);
  for (int i = 0; i < kChunk; ++i) w[i] = programmed(sum[i], step.at(i), code_sign(codes[i]));
}

// One chunk on one chip into w [kChunk].
template <class Packed, class Steps>
void chunk_on_chip(const Program& p, const Steps& step, const ChipKey& key, int64_t chunk, const Packed* codes,
                   float* w) {
  const uint64_t quad0 = (uint64_t)chunk * kQuads;
  if (p.path == kPathFast)
    fast_chunk(p, step, key, quad0, codes, w);
  else if (p.path == kPathDevice)
    device_chunk(p, step, key, quad0, codes, w);
  else
    for (int i = 0; i < kChunk; ++i)
      w[i] = programmed(from_int(code_magnitude(codes[i])), step.at(i), code_sign(codes[i]));
}

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
