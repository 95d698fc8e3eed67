// The sampler's kernels behind plain pointers: what one instruction set provides, and which one is in use.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "core/scaling.h"

namespace nft {

enum class OutType : int { kFloat32 = 0, kBFloat16 = 1 };
enum class WeightType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Weights in memory. The kernels widen 16-bit weights to float32, which is exact: the noise is that of the wide
// weights.
struct Weights {
  const void* data = nullptr;
  WeightType type = WeightType::kFloat32;

  // Inlined always: no instruction set may provide the body for another one (core/macros.h).
  __attribute__((always_inline)) Weights(const float* floats = nullptr) : data(floats) {}
  __attribute__((always_inline)) Weights(const void* data, WeightType type) : data(data), type(type) {}

  __attribute__((always_inline)) int64_t bytes() const { return type == WeightType::kFloat32 ? 4 : 2; }
  __attribute__((always_inline)) Weights operator+(int64_t n) const {
    return {static_cast<const char*>(data) + n * bytes(), type};
  }
};

// 1/s as the sum of two floats (step_reciprocal.h); zeros: divide.
struct Reciprocal {
  float high = 0, low = 0;
};

// One weight tensor to be programmed onto `chips` chips. All arrays in row-major logical order.
struct Program {
  Weights weight;         // [n]; without data if codes are given
  const void* codes;      // [n] int16 (weight_bits <= 15) or int32 (16), packed as core/quantize.h says, or null
  int64_t n;              // number of weights
  float step;             // s of Eq. 4, if all weights share it
  Reciprocal reciprocal;  // 1/s, if a product may replace the division
  Scaling scaling;        // which weights share a step
  const float* steps;     // theirs; null: the kernels find them, which needs runs in the order of the steps
  bool bounded;           // no code exceeds 2^M - 1, or the results are dropped
  int weight_bits, device_bits, path, mapping;
  const float* table;   // see core/conductance.h
  bool plain_means;     // means are the codes (levels) themselves
  bool constant_table;  // and deviations are all equal: no gather
  const int64_t* keys;  // [chips, 2]: seed; draw with its domain
  int chips;
  uint32_t stream;
  OutType out_type;
  void* out;          // [chips, n]
  uint32_t* abs_max;  // raised to max|W| of the programmed chunks (as abs_max_bits); null: not wanted
};

// Work is cut into chunks of this many weights; any split of the chunk range gives the same bits.
constexpr int64_t kChunk = 256;

struct Kernels {
  const char* name;
  // max|W| as its bit pattern: NaN > inf > finite, so one pass also finds weights that are not finite.
  uint32_t (*abs_max_bits)(Weights weight, int64_t n);
  // Step s of Eq. 4 from max|W|.
  float (*step)(float abs_max, int weight_bits);
  // 1/s for `Program::reciprocal`; zeros if products do not give the same codes as quotients, or not faster.
  Reciprocal (*reciprocal)(float step, int weight_bits);
  // Codes of `n` weights, packed as core/quantize.h says, as int16 (code_bytes 2; weight_bits <= 15) or int32 (4).
  void (*quantize)(Weights weight, int64_t n, float step, int weight_bits, void* codes, int code_bytes);
  // The same for the weights [begin, end) of a Program with steps; `begin` starts a chunk. `codes` are the Program's.
  void (*quantize_runs)(const Program& program, int64_t begin, int64_t end, void* codes, int code_bytes);
  // max|W| as bit patterns for every step of the outputs [begin, end) of all groups, counted through.
  void (*maxima)(Weights weight, const Scaling& scaling, int64_t begin, int64_t end, uint32_t* maxima);
  // Chunks [begin, end) of a Program.
  void (*program)(const Program& program, int64_t begin, int64_t end);
  // Standard normals of elements 0..n-1 under one key row, slice and stream.
  void (*normals)(const int64_t* key, uint32_t stream, uint32_t slice, int64_t n, float* out);
  // Raw Philox: counters [n, 4] under key [2] to words [n, 4].
  void (*philox)(const uint32_t* counters, const uint32_t* key, int64_t n, uint32_t* words);
};

// The instruction sets compiled in and supported by this processor, best first; null-terminated names.
const Kernels* const* available_kernels(int* count);

// The instruction set in use, decided at the first call: NFT_EXT_CPU_ISA if set (an unknown or unsupported name throws
// std::runtime_error that names the variable), else the best available.
const Kernels& kernels();

// The named one; throws std::runtime_error if it is unknown or this
// processor cannot run it. `source` names the setting in the message.
const Kernels& kernels_named(const char* name, const char* source);

int64_t chunks_of(int64_t n);

}  // namespace nft
