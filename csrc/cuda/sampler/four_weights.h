// One thread's work on a quad: four neighbouring weights, which share one Philox counter, from memory to memory.
//
// Host and device compile the same templates. So csrc/tests/cuda/test_four_weights.cpp compares every path with the CPU
// kernels, bit for bit, on a machine without a GPU; csrc/cuda/sampler/sampler.cu only distributes quads to threads. The
// operations and their order are those of csrc/cpu/sampler/chunk.h.
#pragma once

#include "core/conductance.h"
#include "cuda/sampler/philox.h"
#include "cuda/sampler/vector_access.h"

namespace nft {
namespace cuda {

// One weight tensor to be programmed onto `chips` chips. Arrays are in row-major logical order. On CUDA all pointers
// point to GPU memory, and the host knows no value behind them.
struct Program {
  const float* weight;  // [n], or null if codes are given
  const void* codes;    // [n] int16 (code_bytes 2) or int32 (code_bytes 4), or null
  int code_bytes;
  int64_t n;          // number of weights
  const float* step;  // [], s of Eq. 4
  int weight_bits, device_bits, path, mapping;
  const float* table;   // see core/conductance.h
  const int64_t* keys;  // [chips, 2]: seed; draw with its domain
  int64_t chips;
  uint32_t stream;
  OutType out_type;
  void* out;           // [chips, n]
  int channels, taps;  // taps > 1: weights [.., channels, taps] are stored [.., taps, channels] (channels_last.h)
  const float* scale;  // [outputs], multiplies each output's weights if taps > 1; or null
};

}  // namespace cuda

namespace NFT_ISA {

// The same number, hidden from the compiler. So it computes what depends on the number where that stands, not ahead of
// a loop, where it would occupy registers.
NFT_FN int opaque(int a) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(a));
#endif
  return a;
}
NFT_FN int64_t opaque(int64_t a) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(a));
#endif
  return a;
}

// The device table where threads read it. `constant`: the means are the codes (levels) themselves and all deviations
// are equal, so no lookup is needed. The result has the same bits without it.
struct Table {
  const float* values;  // means [levels], then deviations [levels], then the limits on the per-device path
  int levels;
  bool constant;
};

NFT_FN int table_levels(const cuda::Program& p) { return 1 << (p.path == kPathDevice ? p.device_bits : p.weight_bits); }
NFT_FN int table_entries(const cuda::Program& p) {
  return 2 * table_levels(p) + (p.path == kPathDevice ? kLimitCount : 0);
}

NFT_FN int table_bytes(const cuda::Program& p) {
  return p.path == kPathOff ? 0 : table_entries(p) * (int)sizeof(float);
}
constexpr int kSharedTableBytes = 48 << 10;  // shared memory that every launch may ask for

// Whether entry i of a table is that of a constant table.
NFT_FN bool is_constant(int i, float value, float std, int levels) {
  return i >= 2 * levels || value == (i < levels ? from_int(i) : std);
}

NFT_FN int64_t quads_of(int64_t n) { return (n + 3) / 4; }
NFT_FN int count_of(int64_t n, int64_t quad) { return n - 4 * quad < 4 ? (int)(n - 4 * quad) : 4; }

// Four magnitudes in units of the step, and their signs.
struct Codes {
  float code[4];
  uint32_t sign[4];
};

NFT_FN Codes quantized(const Quad<float>& w, float step, int weight_bits) {
  const float top = from_int((1 << weight_bits) - 1);
  Codes c;
  for (int i = 0; i < 4; ++i) {
    c.code[i] = code_of(w.v[i], step, top);
    c.sign[i] = sign_of(w.v[i]);
  }
  return c;
}

template <class Packed>
NFT_FN Codes unpacked(const Quad<Packed>& q) {
  Codes c;
  for (int i = 0; i < 4; ++i) {
    c.code[i] = from_int(code_magnitude(q.v[i]));
    c.sign[i] = code_sign(q.v[i]);
  }
  return c;
}

NFT_FN Codes load_codes(const cuda::Program& p, float step, int64_t quad, int count) {
  if (!p.codes) return quantized(load(p.weight + 4 * quad, count), step, p.weight_bits);
  if (p.code_bytes == 2) return unpacked(load((const int16_t*)p.codes + 4 * quad, count));
  return unpacked(load((const int32_t*)p.codes + 4 * quad, count));
}

// The four random words of a quad, one per weight.
NFT_FN void quad_words(const Key& key, uint32_t slice, int64_t quad, uint32_t* w) {
  w[0] = counter0((uint64_t)quad);
  w[1] = counter1((uint64_t)quad, slice, key.domain);
  w[2] = key.stream;
  w[3] = key.draw;
  philox_of_thread(w[0], w[1], w[2], w[3], key.k0, key.k1);
}

NFT_FN void quad_normals(const Key& key, uint32_t slice, int64_t quad, float* z) {
  uint32_t w[4];
  quad_words(key, slice, quad, w);
  box_muller(w[0], w[1], z[0], z[1]);
  box_muller(w[2], w[3], z[2], z[3]);
}

// Fast path, in units of the step: one normal per weight.
NFT_FN void fast_quad(const Table& t, const Key& key, int64_t quad, const Codes& c, float* in_steps) {
  float z[4];
  quad_normals(key, kSliceWeight, quad, z);
  if (t.constant) {
    const float std = t.values[t.levels];
    for (int i = 0; i < 4; ++i) in_steps[i] = weight_in_steps(c.code[i], std, z[i]);
    return;
  }
  for (int i = 0; i < 4; ++i) {
    const int32_t q = opaque(to_int(c.code[i]));
    in_steps[i] = weight_in_steps(t.values[q], t.values[t.levels + q], z[i]);
  }
}

// sum += direction * 2^(jK) * g_j for device j of four weights; `idle` devices hold level 0 and count against.
NFT_FN void add_device(const cuda::Program& p, const Table& t, const Limits& limits, const Key& key, int64_t quad,
                       int j, bool idle, const Codes& c, float* sum) {
  const uint32_t slice = (idle ? kSliceIdle : kSliceActive) + (uint32_t)j;
  float z[4];
  if (limits.half_mass > 0.0f) {
    uint32_t w[4];
    quad_words(key, slice, quad, w);
    for (int i = 0; i < 4; ++i) z[i] = truncated_normal(w[i], limits.half_mass);
  } else {
    quad_normals(key, slice, quad, z);
  }
  const int shift = j * p.device_bits;
  float g[4];
  for (int i = 0; i < 4; ++i) {
    const int32_t level = idle ? 0 : (to_int(c.code[i]) >> shift) & (t.levels - 1);
    const float mean = t.constant ? from_int(level) : t.values[level];
    const float sd = t.values[t.constant ? t.levels : t.levels + level];
    g[i] = conductance(mean, sd, z[i], limits);
  }
  if (limits.stuck_any > 0.0f) {
    uint32_t w[4];
    quad_words(key, slice + (kSliceFault - kSliceActive), quad, w);
    for (int i = 0; i < 4; ++i) g[i] = with_fault(g[i], w[i], from_int(t.levels - 1), limits);
  }
  const float place = from_int(1 << shift);  // 2^(jK): the product is exact
  for (int i = 0; i < 4; ++i) sum[i] = idle ? sub(sum[i], mul(g[i], place)) : add(sum[i], mul(g[i], place));
}

// Per-device path: M/K devices per weight, then as many idle ones in a differential pair.
NFT_FN void device_quad(const cuda::Program& p, const Table& t, const Key& key, int64_t quad, const Codes& c,
                        float* in_steps) {
  const Limits limits = limits_of(t.values, p.device_bits);
  const int active = p.weight_bits / p.device_bits;
  const int devices = p.mapping == kMappingDifferential ? 2 * active : active;
  for (int i = 0; i < 4; ++i) in_steps[i] = 0.0f;
#if defined(__CUDACC__)
#pragma unroll 1  // registers hold one device at a time
#endif
  for (int d = 0; d < devices; ++d)
    add_device(p, t, limits, key, quad, d < active ? d : d - active, d >= active, c, in_steps);
}

NFT_FN Key key_of(const cuda::Program& p, int64_t chip) {
  return make_key(p.keys[2 * chip], p.keys[2 * chip + 1], p.stream);
}

// Four weights on one chip, in units of the step.
template <int kPath>
NFT_FN void quad_on_chip(const cuda::Program& p, const Table& t, int64_t chip, int64_t quad, const Codes& c,
                         float* in_steps) {
  const Key key = key_of(p, chip);
  if (kPath == kPathFast)
    fast_quad(t, key, quad, c, in_steps);
  else if (kPath == kPathDevice)
    device_quad(p, t, key, quad, c, in_steps);
  else
    for (int i = 0; i < 4; ++i) in_steps[i] = c.code[i];
}

// A negative step, which only a caller can give, counts as NaN: its weights are all NaN, and no table is read.
NFT_FN float usable_step(const float* step) { return *step < 0.0f ? float_of(0x7fc00000u) : *step; }

// Weights 4 * quad .. 4 * quad + 3 on the chips first_chip, first_chip + chip_stride, ... The weights are read and
// quantized once for all these chips.
template <int kPath, cuda::OutType kOut>
NFT_FN void program_quad(const cuda::Program& p, const Table& t, int64_t quad, int64_t first_chip,
                         int64_t chip_stride) {
  typedef typename Stored<kOut>::Type Out;
  const float step = usable_step(p.step);
  const int count = count_of(p.n, quad);
  Out* out = (Out*)p.out + 4 * quad;
  Quad<Out> w;
  if (!(step > 0.0f)) {
    // A zero step makes every weight zero, a NaN step (non-finite weights) makes every weight NaN: the step itself.
    for (int i = 0; i < 4; ++i) w.v[i] = Stored<kOut>::from(step);
    for (int64_t chip = first_chip; chip < p.chips; chip += chip_stride) store(out + chip * p.n, count, w);
    return;
  }
  const Codes c = load_codes(p, step, quad, count);
  for (int64_t chip = first_chip; chip < p.chips; chip += chip_stride) {
    float in_steps[4];
    quad_on_chip<kPath>(p, t, chip, quad, c, in_steps);
    for (int i = 0; i < 4; ++i) w.v[i] = Stored<kOut>::from(programmed(in_steps[i], step, c.sign[i]));
    const int64_t here = opaque(quad);
    store((Out*)p.out + chip * p.n + 4 * here, count_of(p.n, here), w);
  }
}

// Packed codes of weights 4 * quad .. 4 * quad + 3; zero if the step is zero or NaN.
template <class Packed>
NFT_FN void quantize_quad(const float* weight, int64_t n, float step, int weight_bits, Packed* codes, int64_t quad) {
  const int count = count_of(n, quad);
  Quad<Packed> q = {};
  if (step > 0.0f) {
    const Codes c = quantized(load(weight + 4 * quad, count), step, weight_bits);
    for (int i = 0; i < 4; ++i) q.v[i] = (Packed)pack_code(c.code[i], c.sign[i]);
  }
  store(codes + 4 * quad, count, q);
}

// max|W| of a quad as its bit pattern: NaN > inf > finite.
NFT_FN uint32_t abs_max_of_quad(const float* weight, int64_t n, int64_t quad) {
  const Quad<float> w = load(weight + 4 * quad, count_of(n, quad));
  uint32_t largest = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t u = bits_of(w.v[i]) & 0x7fffffffu;
    largest = u > largest ? u : largest;
  }
  return largest;
}

// The step from max|W|: NaN if that is not finite, since no forward waits for the host to raise an error.
NFT_FN float step_or_nan(uint32_t largest, int weight_bits) {
  return largest < 0x7f800000u ? step_of(float_of(largest), weight_bits) : float_of(0x7fc00000u);
}

}  // namespace NFT_ISA
}  // namespace nft
