// From an operator's arguments to the sampler's: the step where none is given, and the shortcuts that a table allows.
#pragma once

#include <algorithm>
#include <vector>

#include "../product.h"
#include "deal.h"
#include "foreseen.h"
#include "sampler.h"

namespace nft {

// About 16,000 weights a piece: tens of microseconds, well above the cost of taking it.
constexpr int64_t kChunksPerPiece = 64;
constexpr int64_t kWeightsPerPiece = 1 << 16;  // where they are only read

// What of the table needs no gather.
inline void look_at_table(Program& p) {
  const int64_t levels = int64_t(1) << (p.path == 2 ? p.device_bits : p.weight_bits);
  p.plain_means = p.constant_table = p.path != 0;
  if (p.path == 0) return;
  int other_means = 0, other_deviations = 0;
  for (int64_t i = 0; i < levels; ++i) {  // to the end, many levels at a time
    other_means |= p.table[i] != (float)i;
    other_deviations |= p.table[levels + i] != p.table[levels];
  }
  p.plain_means = !other_means;
  p.constant_table = !other_means && !other_deviations;
}

inline bool has_step(const Crossbar& c) { return c.step || c.found; }
inline float step_of(const Crossbar& c) { return c.step ? *static_cast<const float*>(c.step->data_ptr()) : *c.found; }

inline const float* weights(const Crossbar& c, Tensor& holder) {
  holder = aten::contiguous(c.weight);
  return static_cast<const float*>(holder.data_ptr());
}

// s = fl(max|W| / (2^M - 1)) from the bit pattern of max|W|.
inline float step_of(uint32_t largest, int64_t weight_bits) {
  float value;
  memcpy(&value, &largest, sizeof value);
  return kernels().step(value, (int)weight_bits);
}

// The largest |weight|, found in pieces by several threads, and the step that follows from it.
class Largest {
 public:
  // For pieces that `phase` looks at, or for `parts` that somebody else works on.
  Largest(const float* weight, int64_t n) : Largest(weight, n, (n + kWeightsPerPiece - 1) / kWeightsPerPiece) {}
  Largest(const float* weight, int64_t n, int64_t parts) : weight_(weight), n_(n), parts_((size_t)parts, 0u) {}

  // Looks at all weights; the functions below hold once this is done, or somebody else has looked.
  Phase phase() {
    return Phase::tiles(n_, kWeightsPerPiece, [this](int64_t begin, int64_t end) {
      *part(begin / kWeightsPerPiece) = kernels().abs_max_bits(weight_ + begin, end - begin);
    });
  }

  // Where part i notes its largest.
  uint32_t* part(int64_t i) { return &parts_[(size_t)i]; }

  uint32_t bits() const {
    uint32_t most = 0;
    for (uint32_t part : parts_) most = std::max(most, part);
    return most;
  }
  bool finite() const { return bits() < 0x7f800000u; }

  float step(int64_t weight_bits) const { return step_of(bits(), weight_bits); }

  // The step, once the result is kept for the next call's guess.
  float noted(const char* op, int64_t weight_bits) const {
    check_finite(op);
    foreseen().found(weight_, n_, bits());
    return step(weight_bits);
  }

  // Non-finite weights are an error here, where reading the result is free.
  void check_finite(const char* op) const {
    check(finite(), op, "weight", "must be finite (no NaN, no infinity)", largest());
  }

 private:
  float largest() const {
    const uint32_t u = bits();
    float value;
    memcpy(&value, &u, sizeof value);
    return value;
  }

  const float* weight_;
  int64_t n_;
  std::vector<uint32_t> parts_;
};

// The step and, where that spares enough divisions (on the fast path, for one chip: more keep codes), its reciprocal.
inline void set_step(Program& p, float step) {
  constexpr int64_t kEnough = 1 << 15;  // weights that a microsecond's proof must serve
  p.step = step;
  p.reciprocal = !p.codes && p.chips == 1 && p.path == 1 && p.n >= kEnough ? kernels().reciprocal(step, p.weight_bits) : Reciprocal{};
}

// The same from weights looked at; non-finite ones, which are an error afterwards, get a step that harms nothing.
inline void set_step(Program& p, const Largest& largest) { set_step(p, largest.finite() ? largest.step(p.weight_bits) : 0.0f); }

// Does work that needs a step which is not known, and returns it. run(phases, looking) deals the phases and then its own, which read
// `p`. With a foreseen step its own note the largest |weight| in the `parts` of `looking`, and run comes again if that was another.
template <class Run>
float run_finding_step(const char* op, Program& p, int64_t parts, const Run& run) {
  if (const uint32_t guess = foreseen().largest(p.weight, p.n)) {
    Largest largest(p.weight, p.n, parts);
    set_step(p, step_of(guess, p.weight_bits));
    run(std::vector<Phase>{}, &largest);
    if (largest.bits() != guess && largest.finite()) {
      set_step(p, largest);
      run(std::vector<Phase>{}, nullptr);
    }
    return largest.noted(op, p.weight_bits);
  }
  Largest largest(p.weight, p.n);
  run(std::vector<Phase>{largest.phase(), {1, [&](int64_t) { set_step(p, largest); }}}, nullptr);
  return largest.noted(op, p.weight_bits);
}

// The sampler's view of a crossbar, without its chips and its result. `holder` keeps what must live as long.
inline Program program_of(const Crossbar& c, Tensor& holder) {
  Program p{};
  p.n = c.weight.numel();
  p.weight = c.codes ? nullptr : weights(c, holder);
  p.codes = c.codes ? c.codes->data_ptr() : nullptr;
  p.weight_bits = (int)c.device[0];
  p.device_bits = (int)c.device[1];
  p.path = (int)c.device[2];
  p.mapping = (int)c.device[3];
  p.step = has_step(c) ? step_of(c) : 0.0f;
  check(!(p.step < 0), c.op, "step", "must not be negative", p.step);
  p.table = static_cast<const float*>(c.table.data_ptr());
  p.keys = static_cast<const int64_t*>(c.key.data_ptr());
  p.chips = (int)c.chips();
  p.stream = (uint32_t)c.stream;
  look_at_table(p);
  return p;
}

}  // namespace nft
