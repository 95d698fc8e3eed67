// From a Crossbar to the sampler's Program: the step if none is given, and the shortcuts that a device table allows.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "core/macros.h"
#include "cpu/sampler/sampler.h"
#include "cpu/torch/abs_max_cache.h"
#include "cpu/torch/threads.h"
#include "operators/crossbar.h"

namespace nft {

// About 16,000 weights per piece: tens of microseconds, far more than it costs to take a piece.
constexpr int64_t kChunksPerPiece = 64;
constexpr int64_t kWeightsPerPiece = 1 << 16;  // of weights that are only read

// Sets the shortcuts: means that are the codes themselves, and one deviation for all codes, need no lookup.
inline void look_at_table(Program& p) {
  const int64_t levels = int64_t(1) << (p.path == 2 ? p.device_bits : p.weight_bits);
  p.plain_means = p.constant_table = p.path != 0;
  if (p.path == 0) return;
  int other_means = 0, other_deviations = 0;
  for (int64_t i = 0; i < levels; ++i) {  // no early exit, so that it runs in vectors
    other_means |= p.table[i] != (float)i;
    other_deviations |= p.table[levels + i] != p.table[levels];
  }
  p.plain_means = !other_means;
  p.constant_table = !other_means && !other_deviations;
}

// The sampler's view of a dense weight.
inline Weights weights_of(const Tensor& dense) {
  const ScalarType t = dense.scalar_type();
  return {dense.data_ptr(), t == ScalarType::BFloat16 ? WeightType::kBFloat16
                            : t == ScalarType::Half   ? WeightType::kFloat16
                                                      : WeightType::kFloat32};
}

// The steps of a crossbar, if they are known; else null.
inline const float* steps_of(const Crossbar& c) {
  return c.step ? floats(*c.step) : c.found.empty() ? nullptr : c.found.data();
}

// s = fl(max|W| / (2^M - 1)) from the bit pattern of max|W|.
inline float step_of(uint32_t abs_max, int64_t weight_bits) {
  return kernels().step(generic::float_of(abs_max), (int)weight_bits);
}

// max|W|, found in pieces by several threads, and the step that follows from it.
class AbsMax {
 public:
  // For the pieces of `phase`, or for `parts` pieces of another phase that finds it on its way.
  AbsMax(Weights weight, int64_t n) : AbsMax(weight, n, (n + kWeightsPerPiece - 1) / kWeightsPerPiece) {}
  AbsMax(Weights weight, int64_t n, int64_t parts) : weight_(weight), n_(n), parts_((size_t)parts, 0u) {}

  // Reads all weights. The functions below hold after this phase, or after the other one.
  Phase phase() {
    return Phase::tiles(n_, kWeightsPerPiece, [this](int64_t begin, int64_t end) {
      *part(begin / kWeightsPerPiece) = kernels().abs_max_bits(weight_ + begin, end - begin);
    });
  }

  // Where piece i writes its own maximum.
  uint32_t* part(int64_t i) { return &parts_[(size_t)i]; }

  uint32_t bits() const {
    uint32_t most = 0;
    for (uint32_t part : parts_) most = std::max(most, part);
    return most;
  }
  bool finite() const { return bits() < 0x7f800000u; }

  float step(int64_t weight_bits) const { return step_of(bits(), weight_bits); }

  // The step; the cache learns max|W| for the next call.
  float noted(const char* op, int64_t weight_bits) const {
    check_finite(op);
    abs_max_cache().note(weight_, n_, bits());
    return step(weight_bits);
  }

  // Weights that are not finite are an error. Here the check is free.
  void check_finite(const char* op) const {
    check(finite(), op, "weight", "must be finite (no NaN, no infinity)", generic::float_of(bits()));
  }

 private:
  Weights weight_;
  int64_t n_;
  std::vector<uint32_t> parts_;
};

// max|W| for every step, found before the weights are programmed. Each piece has outputs of its own.
class Maxima {
 public:
  Maxima(Weights weight, const Scaling& s, int weight_bits)
      : weight_(weight),
        scaling_(s),
        weight_bits_(weight_bits),
        bits_((size_t)generic::step_count(s)),
        steps_(bits_.size()) {}

  // Finds the steps. The functions below hold after this phase.
  Phase phase() {
    const int64_t inputs = std::max<int64_t>(1, scaling_.k1 * scaling_.k2);
    const int64_t outputs = std::max<int64_t>(scaling_.k2 == 1 ? kLine : 1, kWeightsPerPiece / inputs);
    return Phase::tiles(scaling_.groups * scaling_.outputs, outputs, [this](int64_t begin, int64_t end) {
      kernels().maxima(weight_, scaling_, begin, end, bits_.data());
      for (int64_t i = begin * scaling_.tiles; i < end * scaling_.tiles; ++i)
        steps_[(size_t)i] = step_of(bits_[(size_t)i], weight_bits_);
    });
  }

  const float* steps() const { return steps_.data(); }

  // The steps of finite weights.
  std::vector<float> checked(const char* op) const {
    uint32_t most = 0;
    for (uint32_t bits : bits_) most = std::max(most, bits);
    check(most < 0x7f800000u, op, "weight", "must be finite (no NaN, no infinity)", generic::float_of(most));
    return steps_;
  }

 private:
  static constexpr int64_t kLine = 64;  // weights of neighbouring outputs that are worth reading at once

  Weights weight_;
  Scaling scaling_;
  int weight_bits_;
  std::vector<uint32_t> bits_;
  std::vector<float> steps_;
};

// Whether the kernels find the steps on their way: each is then read once more from the cache, not from memory. A long
// run would be read by every piece that holds a part of it.
inline bool finds_steps(const Program& p) {
  constexpr int64_t kLongest = 1 << 13;  // weights: half a piece
  return !generic::one_step(p.scaling) && !p.steps && generic::steps_in_order(p.scaling) && p.scaling.rows <= kLongest;
}

// A piece of whole runs where the kernels find the steps: two pieces would read max|W| of a run that they share.
inline int64_t chunks_per_piece(const Program& p) {
  if (!finds_steps(p)) return kChunksPerPiece;
  const int64_t runs = kChunksPerPiece * kChunk / p.scaling.rows;
  return chunks_of(runs * p.scaling.rows);
}

// The step, and its reciprocal if that saves enough divisions: on
// the fast path, for one chip. (Several chips share their codes.)
inline void set_step(Program& p, float step) {
  constexpr int64_t kEnough = 1 << 15;  // weights; the proof that the reciprocal serves takes a microsecond
  p.step = step;
  p.reciprocal = !p.codes && p.chips == 1 && p.path == 1 && p.n >= kEnough ? kernels().reciprocal(step, p.weight_bits)
                                                                           : Reciprocal{};
}

// The step of weights that have been read. Weights that are not finite raise an error later; until then the step is 0.
inline void set_step(Program& p, const AbsMax& abs_max) {
  set_step(p, abs_max.finite() ? abs_max.step(p.weight_bits) : 0.0f);
}

// Runs work on weights with one step that is not known yet, and returns the step. run(phases, abs_max) runs `phases`
// and then its own phases, which read `p`. If the cache expects a max|W|, run's phases use it and write the true one to
// the `parts` of `abs_max`; run is called a second time if the two differ.
template <class Run>
float run_finding_one_step(const char* op, Program& p, int64_t parts, const Run& run) {
  if (const uint32_t expected = abs_max_cache().expected(p.weight, p.n)) {
    AbsMax abs_max(p.weight, p.n, parts);
    set_step(p, step_of(expected, p.weight_bits));
    run(std::vector<Phase>{}, &abs_max);
    if (abs_max.bits() != expected && abs_max.finite()) {
      set_step(p, abs_max);
      run(std::vector<Phase>{}, nullptr);
    }
    return abs_max.noted(op, p.weight_bits);
  }
  AbsMax abs_max(p.weight, p.n);
  run(std::vector<Phase>{abs_max.phase(), {1, [&](int64_t) { set_step(p, abs_max); }}}, nullptr);
  return abs_max.noted(op, p.weight_bits);
}

// The same for any weights, and for known steps too. The crossbar learns the steps unless the kernels find them on
// their way: then they find them again for the next chip.
template <class Run>
void run_finding_steps(Crossbar& c, Program& p, int64_t parts, const Run& run) {
  if (p.steps) {
    if (generic::one_step(p.scaling)) set_step(p, *p.steps);
    run(std::vector<Phase>{}, nullptr);
  } else if (generic::one_step(p.scaling)) {
    c.found = {run_finding_one_step(c.op, p, parts, run)};
  } else if (finds_steps(p)) {
    AbsMax abs_max(p.weight, p.n, parts);
    run(std::vector<Phase>{}, &abs_max);
    abs_max.check_finite(c.op);
  } else {
    Maxima maxima(p.weight, p.scaling, p.weight_bits);
    p.steps = maxima.steps();
    run(std::vector<Phase>{maxima.phase()}, nullptr);
    c.found = maxima.checked(c.op);
  }
}

// Codes index the device table, so one beyond M bits would read past its end.
template <class Packed>
void check_codes(const Crossbar& c) {
  const Packed* codes = static_cast<const Packed*>(c.codes->data_ptr());
  const int32_t top = (1 << c.spec[0]) - 1;
  if (top == std::numeric_limits<Packed>::max()) return;  // no int16 has more than 15 bits
  const auto in_range = [&](int64_t begin, int64_t end) {
    constexpr int kSign = 8 * sizeof(Packed) - 1;
    Packed bits = 0;  // of all magnitudes; in vectors of short numbers
    for (int64_t i = begin; i < end; ++i) bits |= (Packed)(codes[i] ^ (codes[i] >> kSign));
    return (bits & ~top) == 0;
  };
  std::atomic<int64_t> wrong{-1};  // the first code of a piece with a wrong one
  run_tiles(c.codes->numel(), kWeightsPerPiece, [&](int64_t begin, int64_t end) {
    if (!in_range(begin, end)) wrong = begin;
  });
  for (int64_t i = wrong; i >= 0 && i < c.codes->numel(); ++i)
    check(in_range(i, i + 1), c.op, "codes",
          "must fit weight_bits, so make them with nft_ext::quantize for this device", codes[i]);
}

inline void check_steps(const char* op, const Tensor& step) {
  const float* steps = floats(step);
  const int64_t count = step.numel();
  const auto usable = [](float s) { return s >= 0 && s <= std::numeric_limits<float>::max(); };
  bool all = true;
  for (int64_t i = 0; i < count; ++i) all &= usable(steps[i]);
  for (int64_t i = 0; !all && i < count; ++i)
    check(usable(steps[i]), op, "step", "must be a finite number >= 0", steps[i]);
}

// What can be checked only by reading: the key, and the step and the codes that a caller gives. The kernels read 40
// bits of a row's second number; others would silently name another chip.
inline void check_values(const Crossbar& c) {
  const int64_t* rows = static_cast<const int64_t*>(c.key.data_ptr());
  for (int64_t chip = 0; chip < c.chips(); ++chip)
    check(rows[2 * chip + 1] >> 40 == 0, c.op, "key",
          "must have draw + domain * 2^32 in 0..2^40 - 1 in its second column", rows[2 * chip + 1]);
  if (c.step) check_steps(c.op, *c.step);
  if (c.codes) c.spec[0] <= 15 ? check_codes<int16_t>(c) : check_codes<int32_t>(c);
}

// The sampler's view of a crossbar, without its chips and its result.
// `holder` keeps a copy of the weight alive if one is needed.
inline Program program_of(const Crossbar& c, Tensor& holder) {
  Program p{};
  p.n = c.weight.numel();
  if (c.codes) {
    p.codes = c.codes->data_ptr();
  } else {
    holder = aten::contiguous(c.weight);
    p.weight = weights_of(holder);
  }
  p.weight_bits = (int)c.spec[0];
  p.device_bits = (int)c.spec[1];
  p.path = (int)c.spec[2];
  p.mapping = (int)c.spec[3];
  p.scaling = scaling_of(c);
  p.steps = steps_of(c);
  p.bounded = !c.step;  // a step from max|W|
  p.table = floats(c.table);
  p.keys = static_cast<const int64_t*>(c.key.data_ptr());
  p.chips = (int)c.chips();
  p.stream = (uint32_t)c.stream;
  look_at_table(p);
  return p;
}

inline OutType out_type(const Tensor& out) {
  return out.scalar_type() == ScalarType::Float ? OutType::kFloat32 : OutType::kBFloat16;
}

}  // namespace nft
