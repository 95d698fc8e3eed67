// The sampler's kernels, written once and compiled once per instruction
// set. The including file defines NFT_ISA; CMake sets its machine flags.

#include "cpu/sampler/chunk.h"

namespace nft {
namespace NFT_ISA {
namespace {

void look(const Program& p, int64_t first, int64_t count) {
  const uint32_t found = largest_bits(p.weight + first, count);
  if (found > *p.abs_max) *p.abs_max = found;
}

// Chips whose keys are prepared at once.
constexpr int kChipsAtOnce = 8;

// Weights that share a step of zero are exactly zero.
template <class Steps>
void clear_zero_steps(const Steps& step, float* w) {
  for (int i = 0; i < kChunk; ++i) w[i] = step_is_zero(step.at(i)) ? 0.0f : w[i];
}

// A chunk of `count` weights on `chips` chips.
template <class Packed, class Steps>
void program_chunk(const Program& p, const Steps& step, bool zero, const ChipKey* keys, int first_chip, int chips,
                   int64_t chunk, int count) {
  alignas(64) Packed packed[kChunk];
  alignas(64) Lane local;
  alignas(64) uint16_t half[kChunk];
  const int64_t first = chunk * kChunk;
  const Packed* codes = codes_of_chunk(p, step, first, count, packed);
  for (int chip = 0; chip < chips; ++chip) {
    const int64_t at = (first_chip + chip) * p.n + first;
    if (p.out_type == OutType::kFloat32) {
      float* out = (float*)p.out + at;
      ask_for_next(out);
      float* w = count == kChunk ? out : local;
      chunk_on_chip(p, step, keys[chip], chunk, codes, w);
      if (zero) clear_zero_steps(step, w);
      if (count < kChunk) memcpy(out, local, count * sizeof(float));
    } else {
      uint16_t* out = (uint16_t*)p.out + at;
      ask_for_next(out);
      chunk_on_chip(p, step, keys[chip], chunk, codes, local);
      if (zero) clear_zero_steps(step, local);
      for (int i = 0; i < kChunk; ++i) half[i] = to_bfloat16(local[i]);
      memcpy(out, half, count * sizeof(uint16_t));
    }
  }
}

int weights_in_chunk(const Program& p, int64_t first) {
  return p.n - first < kChunk ? (int)(p.n - first) : (int)kChunk;
}

template <class Packed>
void program_packed(const Program& p, const ChipKey* keys, int first_chip, int chips, int64_t begin, int64_t end) {
  alignas(64) Lane local;
  const bool fresh = !p.codes && chips == 1 && p.path == kPathFast && p.out_type == OutType::kFloat32;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunk;
    const int count = weights_in_chunk(p, first);
    if (fresh && count == kChunk) {
      const float* weight = floats_of_chunk(p.weight + first, count, local);
      const uint32_t found =
          fresh_chunk(p, keys[0], (uint64_t)chunk * kQuads, weight, (float*)p.out + first_chip * p.n + first);
      if (p.abs_max && found > *p.abs_max) *p.abs_max = found;
      continue;
    }
    if (p.abs_max && first_chip == 0) look(p, first, count);
    program_chunk<Packed>(p, OneStep{p.step, {}}, false, keys, first_chip, chips, chunk, count);
  }
}

// The same with a step per run.
template <class Packed>
void program_runs(const Program& p, const ChipKey* keys, int first_chip, int chips, int64_t begin, int64_t end) {
  alignas(64) Lane local;
  const bool fresh = !p.codes && chips == 1 && p.path == kPathFast && p.out_type == OutType::kFloat32;
  StepRuns runs(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunk;
    const int count = weights_in_chunk(p, first);
    runs.chunk(first, count);
    if (!p.steps) runs.look_ahead(first, end * kChunk);
    if (fresh && count == kChunk) {
      const float* weight = floats_of_chunk(p.weight + first, count, local);
      float* w = (float*)p.out + first_chip * p.n + first;
      fresh_run(p, runs, keys[0], (uint64_t)chunk * kQuads, weight, w);
      if (runs.zero && runs.uniform) clear_zero_steps(runs.one, w);
      if (runs.zero && !runs.uniform) clear_zero_steps(runs.many(), w);
    } else if (runs.uniform) {
      program_chunk<Packed>(p, runs.one, runs.zero, keys, first_chip, chips, chunk, count);
    } else {
      program_chunk<Packed>(p, runs.many(), runs.zero, keys, first_chip, chips, chunk, count);
    }
  }
}

template <class Packed>
void program_packed(const Program& p, int64_t begin, int64_t end) {
  for (int first = 0; first < p.chips; first += kChipsAtOnce) {
    const int chips = p.chips - first < kChipsAtOnce ? p.chips - first : kChipsAtOnce;
    ChipKey keys[kChipsAtOnce];
    for (int chip = 0; chip < chips; ++chip) keys[chip] = ChipKey(p.keys + 2 * (first + chip), p.stream);
    if (one_step(p.scaling))
      program_packed<Packed>(p, keys, first, chips, begin, end);
    else
      program_runs<Packed>(p, keys, first, chips, begin, end);
  }
}

void program_chunks(const Program& p, int64_t begin, int64_t end) {
  if (begin >= end) return;
  if (one_step(p.scaling) && step_is_zero(p.step)) {
    const int64_t first = begin * kChunk, last = end * kChunk < p.n ? end * kChunk : p.n;
    const int64_t bytes = p.out_type == OutType::kFloat32 ? 4 : 2;
    if (p.abs_max) look(p, first, last - first);
    for (int chip = 0; chip < p.chips; ++chip)
      memset((char*)p.out + (chip * p.n + first) * bytes, 0, (size_t)((last - first) * bytes));
  } else if (p.weight_bits <= 15) {
    program_packed<int16_t>(p, begin, end);
  } else {
    program_packed<int32_t>(p, begin, end);
  }
}

float step_from(float abs_max, int weight_bits) { return step_of(abs_max, weight_bits); }

template <class Packed>
void quantize_packed(Weights weights, int64_t n, float step, int weight_bits, Packed* codes) {
  const float top = from_int((1 << weight_bits) - 1);
  with_type(weights, [=](const auto* weight) {
    for (int64_t i = 0; i < n; ++i) {
      const float w = widened(weight[i]);
      codes[i] = (Packed)pack_code(code_of(w, step, top), sign_of(w));
    }
  });
}

void quantize_all(Weights weights, int64_t n, float step, int weight_bits, void* codes, int code_bytes) {
  if (n == 0) return;  // an empty tensor may have no memory
  if (step_is_zero(step))
    memset(codes, 0, (size_t)n * code_bytes);
  else if (code_bytes == 2)
    quantize_packed(weights, n, step, weight_bits, (int16_t*)codes);
  else
    quantize_packed(weights, n, step, weight_bits, (int32_t*)codes);
}

template <class Packed, class Steps>
void quantize_chunk(const Program& p, const Steps& step, int64_t first, int count, Packed* codes) {
  alignas(64) Lane local;
  alignas(64) Packed packed[kChunk];
  const float top = from_int((1 << p.weight_bits) - 1);
  const float* w = floats_of_chunk(p.weight + first, count, local);
  for (int i = 0; i < kChunk; ++i)
    packed[i] = step_is_zero(step.at(i)) ? Packed(0) : (Packed)pack_code(code_of(w[i], step.at(i), top), sign_of(w[i]));
  memcpy(codes, packed, (size_t)count * sizeof(Packed));
}

template <class Packed>
void quantize_runs_packed(const Program& p, int64_t begin, int64_t end, Packed* codes) {
  StepRuns runs(p);
  for (int64_t first = begin; first < end; first += kChunk) {
    const int count = weights_in_chunk(p, first);
    runs.chunk(first, count);
    if (runs.uniform)
      quantize_chunk(p, runs.one, first, count, codes + first);
    else
      quantize_chunk(p, runs.many(), first, count, codes + first);
  }
}

void quantize_runs(const Program& p, int64_t begin, int64_t end, void* codes, int code_bytes) {
  if (code_bytes == 2)
    quantize_runs_packed(p, begin, end, (int16_t*)codes);
  else
    quantize_runs_packed(p, begin, end, (int32_t*)codes);
}

void maxima_of(Weights weights, const Scaling& s, int64_t begin, int64_t end, uint32_t* maxima) {
  memset(maxima + begin * s.tiles, 0, (size_t)((end - begin) * s.tiles) * sizeof *maxima);
  for (int64_t first = begin; first < end;) {  // the outputs of one group
    const int64_t group = first / s.outputs, last = end < (group + 1) * s.outputs ? end : (group + 1) * s.outputs;
    for (int64_t k1 = 0; k1 < s.k1; ++k1) {
      const int64_t row = ((group * s.k1 + k1) * s.outputs + first % s.outputs) * s.k2;  // of output `first`
      if (s.k2 == 1) {
        uint32_t* most = maxima + first * s.tiles + k1 / s.rows;
        with_type(weights + row, [&](const auto* weight) {
          for (int64_t o = 0; o < last - first; ++o) {
            const uint32_t u = bits_of(magnitude_of(widened(weight[o])));
            most[o * s.tiles] = u > most[o * s.tiles] ? u : most[o * s.tiles];
          }
        });
        continue;
      }
      for (int64_t o = first; o < last; ++o)
        for (int64_t k2 = 0; k2 < s.k2;) {
          const int64_t tile = (k1 * s.k2 + k2) / s.rows, of_tile = (tile + 1) * s.rows - k1 * s.k2;
          const int64_t to = of_tile < s.k2 ? of_tile : s.k2;
          const uint32_t found = largest_bits(weights + (row + (o - first) * s.k2 + k2), to - k2);
          uint32_t& most = maxima[o * s.tiles + tile];
          most = found > most ? found : most;
          k2 = to;
        }
    }
    first = last;
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

// Uses the lanes of the noise, so that the published known answers test the code that the sampler runs. Counter i is in
// lane i modulo the number of lanes, among its neighbours.
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
const Kernels table = {NFT_TEXT(NFT_ISA), largest_bits, step_from,      reciprocal_of, quantize_all,
                       quantize_runs,     maxima_of,    program_chunks, normals_of,    philox_of};

}  // namespace NFT_ISA
}  // namespace nft
