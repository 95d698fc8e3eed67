// Cache of max|W| by the weight's address and type, verified on every use. Results never depend on it.
//
// The step needs max|W| before the first weight is programmed: an extra pass over memory. With an expected value,
// one pass programs the weights and finds their true max|W|. If that differs, the pass is repeated with the true one.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <mutex>

#include "cpu/sampler/sampler.h"

namespace nft {

class AbsMaxCache {
 public:
  // The bit pattern of max|W| to expect; 0 if the cache does not trust what it holds.
  uint32_t expected(Weights weight, int64_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Entry* entry = find(weight, n);
    return entry && entry->trusted() ? entry->abs_max : 0;
  }

  // Notes the true value, which every call finds.
  void note(Weights weight, int64_t n, uint32_t abs_max) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* entry = find(weight, n);
    if (!entry) {
      *replaceable(weight, n) = {weight.data, weight.type, n, abs_max, 0, kNeeded};
    } else if (entry->abs_max == abs_max) {
      entry->repeats += entry->repeats < kMostNeeded;
    } else {
      if (entry->trusted() && entry->needed < kMostNeeded) entry->needed *= 4;
      entry->abs_max = abs_max;
      entry->repeats = 0;
    }
  }

 private:
  // How many calls in a row must find the same value before it is trusted. A wrong value costs a pass of sampling,
  // several times what a right one saves. So each wrong value makes this number four times larger: weights that keep
  // changing lose four passes in all.
  static constexpr int kNeeded = 2, kMostNeeded = 128;
  static constexpr size_t kPlaces = 2048, kWays = 2;  // one place holds two weights

  struct Entry {
    const void* weight;
    WeightType type;
    int64_t n;
    uint32_t abs_max;
    int repeats, needed;

    bool trusted() const { return repeats >= needed; }
  };

  Entry* place(Weights weight, int64_t n) {
    const uint64_t mixed = ((uint64_t)(uintptr_t)weight.data ^ (uint64_t)n << 40) * 0x9e3779b97f4a7c15u;
    return entries_[mixed >> 53];
  }
  Entry* find(Weights weight, int64_t n) {
    Entry* ways = place(weight, n);
    for (size_t i = 0; i < kWays; ++i)
      if (ways[i].weight == weight.data && ways[i].type == weight.type && ways[i].n == n) return &ways[i];
    return nullptr;
  }
  Entry* replaceable(Weights weight, int64_t n) {
    Entry* ways = place(weight, n);
    return ways[0].repeats <= ways[1].repeats ? &ways[0] : &ways[1];
  }

  std::mutex mutex_;
  Entry entries_[kPlaces][kWays] = {};
};

// One for the process.
inline AbsMaxCache& abs_max_cache() {
  static AbsMaxCache only;
  return only;
}

}  // namespace nft
