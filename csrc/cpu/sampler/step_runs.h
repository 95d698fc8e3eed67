// The steps of consecutive weights, chunk by chunk.
//
// A run is the weights side by side that share a step: an output's, or a tile's. Most chunks lie in one run. The others
// get an array with one step per weight.
//
// Where a weight's runs are in the order of its steps, the steps need not be known: a run's max|W| is found when the
// sampler comes to it. The run is then in the cache when its weights are programmed.
#pragma once

#include "cpu/sampler/step_reciprocal.h"
#include "cpu/sampler/widen.h"

namespace nft {
namespace NFT_ISA {
namespace {

// The step of every weight of a chunk, for loops over the chunk.
struct OneStep {
  float step;
  Reciprocal reciprocal;

  float at(int) const { return step; }
  float quotient(float magnitude, int) const { return exact_quotient_by(magnitude, step, reciprocal); }
};
struct ManySteps {
  const float* __restrict step;
  const float* __restrict reciprocal;

  float at(int i) const { return step[i]; }
  float quotient(float magnitude, int i) const { return exact_quotient_by(magnitude, step[i], reciprocal[i]); }
};

// max|W| as its bit pattern.
uint32_t largest_bits(Weights weights, int64_t n) {
  return with_type(weights, [n](const auto* weight) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t u = bits_of(widened(weight[i])) & 0x7fffffffu;
      largest = u > largest ? u : largest;
    }
    return largest;
  });
}

class StepRuns {
  static constexpr int kAtOnce = 16;  // weights: their steps are stored at once

 public:
  bool uniform;                                                      // the chunk lies in one run
  bool zero;                                                         // a step of the chunk is zero
  bool reciprocal;                                                   // every step of the chunk has a reciprocal
  OneStep one;                                                       // of a uniform chunk
  alignas(64) float step[kChunk + kAtOnce], high[kChunk + kAtOnce];  // of any other chunk

  explicit StepRuns(const Program& p) : p_(p), s_(p.scaling) {}

  ManySteps many() const { return {step, high}; }

  // Reads a chunk of the next run, if that begins before weight `last`, while the chunk at `first` is programmed. So
  // its max|W| is known when this run ends, and no chunk waits for memory.
  void look_ahead(int64_t first, int64_t last) {
    if (end_ >= p_.n) return;
    if (end_ >= last) {  // for the piece of work that comes next
      with_type(p_.weight + (first + run() - kChunk), [](const auto* weight) { ask_for_next(weight); });
      return;
    }
    if (ahead_ <= end_) {
      ahead_ = end_;
      largest_ahead_ = 0;
    }
    const int64_t row = end_ < row_ + s_.k2 ? row_ : end_;  // of the next run
    const int64_t end = end_ + s_.rows < row + s_.k2 ? end_ + s_.rows : row + s_.k2;
    const int64_t to = ahead_ + kChunk < end ? ahead_ + kChunk : end;
    if (ahead_ == to) return;
    with_type(p_.weight + ahead_, [](const auto* weight) { ask_for_next(weight); });
    read_to(to);
  }

  // Goes to the chunk of `count` weights from `first` on, the next one or any other.
  void chunk(int64_t first, int count) {
    if (first == at_)
      pass(first);
    else
      seek(first);
    at_ = first + count;
    zero = false;
    uniform = at_ <= end_;
    if (uniform) {
      one = {step_, reciprocal_};
      zero = step_is_zero(step_);
      reciprocal = !zero && reciprocal_.high != 0.0f;
      return;
    }
    if (s_.k2 == 1 && p_.steps) return columns(count);
    reciprocal = true;
    for (int filled = 0; filled < count;) {
      pass(first + filled);
      const int64_t left = end_ - (first + filled);
      const int to = left < count - filled ? filled + (int)left : count;
      fill(filled, to);
      filled = to;
    }
    fill(count, kChunk);  // past the last weight: any step serves
  }

 private:
  int64_t run() const { return end_ - start_; }

  void read_to(int64_t to) {
    const uint32_t found = largest_bits(p_.weight + ahead_, to - ahead_);
    if (found > largest_ahead_) largest_ahead_ = found;
    ahead_ = to;
  }

  void fill(int from, int to) {
    zero |= step_is_zero(step_);
    reciprocal &= reciprocal_.high != 0.0f;
    for (int i = from; i < to; i += kAtOnce)  // more than needed: the next run overwrites it
      for (int j = 0; j < kAtOnce; ++j) {
        step[i + j] = step_;
        high[i + j] = reciprocal_.high;
      }
  }

  // Where neighbours have different outputs: their steps are neighbours too, `tiles` apart.
  void columns(int count) {
    reciprocal = false;
    for (int filled = 0; filled < count;) {
      const int64_t left = s_.outputs - output_;
      const int n = left < count - filled ? (int)left : count - filled;
      const float* from = p_.steps + step_of_run();
      for (int i = 0; i < n; ++i) step[filled + i] = from[i * s_.tiles];
      filled += n;
      row_ += n;
      output_ += n;
      if (output_ == s_.outputs) next_k1();
    }
    for (int i = count; i < kChunk; ++i) step[i] = 1.0f;
    for (int i = 0; i < kChunk; ++i) zero |= step_is_zero(step[i]);
    start_ = row_;
    if (start_ < p_.n) set_run();
  }

  int64_t step_of_run() const { return (group_ * s_.outputs + output_) * s_.tiles + tile_; }

  // To the run that holds element i.
  void seek(int64_t i) {
    const int64_t row = i / s_.k2, outer = row / s_.outputs;
    group_ = outer / s_.k1;
    k1_ = outer % s_.k1;
    output_ = row % s_.outputs;
    row_ = row * s_.k2;
    tile_ = (k1_ * s_.k2 + i % s_.k2) / s_.rows;
    const int64_t of_tile = row_ + tile_ * s_.rows - k1_ * s_.k2;
    start_ = of_tile > row_ ? of_tile : row_;
    set_run();
  }

  // To the next run if weight i begins it.
  void pass(int64_t i) {
    if (i < end_) return;
    start_ = end_;
    if (start_ < row_ + s_.k2) {
      ++tile_;  // of the same output
    } else {
      row_ = start_;
      ++output_;
      if (output_ == s_.outputs)
        next_k1();
      else
        tile_ = first_tile();
    }
    set_run();
  }

  void next_k1() {
    output_ = 0;
    if (++k1_ == s_.k1) {
      k1_ = 0;
      ++group_;
    }
    tile_ = first_tile();
  }

  int64_t first_tile() const { return s_.tiles == 1 || k1_ == 0 ? 0 : k1_ * s_.k2 / s_.rows; }

  // The step and the end of the run at start_.
  void set_run() {
    const int64_t of_tile = row_ + (tile_ + 1) * s_.rows - k1_ * s_.k2, of_row = row_ + s_.k2;
    end_ = of_tile < of_row ? of_tile : of_row;
    if (p_.steps) {
      step_ = p_.steps[step_of_run()];
    } else {
      if (ahead_ <= start_ || ahead_ > end_) {
        ahead_ = start_;
        largest_ahead_ = 0;
      }
      read_to(end_);
      if (p_.abs_max && largest_ahead_ > *p_.abs_max) *p_.abs_max = largest_ahead_;
      step_ = step_of(float_of(largest_ahead_), p_.weight_bits);
    }
    reciprocal_ = run() < kShort ? Reciprocal{} : exact_reciprocal_of(step_);
  }

  static constexpr int64_t kShort = 8;  // weights; for so few the divisions cost no more

  const Program& p_;
  const Scaling& s_;
  int64_t at_ = -1;                        // the next chunk
  int64_t start_ = 0, end_ = 0, row_ = 0;  // the present run; the first weight of its output and k1
  int64_t group_ = 0, k1_ = 0, output_ = 0, tile_ = 0;
  float step_ = 0;
  Reciprocal reciprocal_;
  int64_t ahead_ = -1;  // weights of the next run before this one have been read
  uint32_t largest_ahead_ = 0;
};

}  // namespace
}  // namespace NFT_ISA
}  // namespace nft
