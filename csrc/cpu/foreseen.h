// A guess at the largest |weight| before the weights are read: what the last calls found at the same place.
//
// The quantizer's step needs the largest of all weights before the first can be programmed, a pass of its own that waits for memory.
// Whoever programs the same weights onto chip after chip need not pay it each time: with a guess one pass does both, looks at every
// weight on the way, and starts again where the guess was wrong. So a result never depends on a guess, and nothing need be told
// when weights change.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <mutex>

namespace nft {

class Foreseen {
 public:
  // Bit pattern of the largest |weight| to be expected; 0 where a guess is not worth its risk.
  uint32_t largest(const float* weight, int64_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Seen* seen = find(weight, n);
    return seen && seen->trusted() ? seen->largest : 0;
  }

  // What a call found, whether it had guessed or not.
  void found(const float* weight, int64_t n, uint32_t largest) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Seen* seen = find(weight, n);
    if (!seen) {
      *newcomers_place(weight, n) = {weight, n, largest, 0, kNeeded};
    } else if (seen->largest == largest) {
      seen->repeats += seen->repeats < kMostNeeded;
    } else {
      if (seen->trusted() && seen->needed < kMostNeeded) seen->needed *= 4;
      seen->largest = largest;
      seen->repeats = 0;
    }
  }

 private:
  // How often a call must have found what the one before it found. A wrong guess costs a pass of sampling, several times what a right
  // one spares, and asks for four times as many: weights that keep changing lose four passes altogether.
  static constexpr int kNeeded = 2, kMostNeeded = 128;
  static constexpr size_t kPlaces = 2048, kWays = 2;  // two weights that meet in one place stay there

  struct Seen {
    const float* weight;
    int64_t n;
    uint32_t largest;
    int repeats, needed;

    bool trusted() const { return repeats >= needed; }
  };

  Seen* place(const float* weight, int64_t n) {
    const uint64_t mixed = ((uint64_t)(uintptr_t)weight ^ (uint64_t)n << 40) * 0x9e3779b97f4a7c15u;
    return seen_[mixed >> 53];
  }
  Seen* find(const float* weight, int64_t n) {
    Seen* ways = place(weight, n);
    for (size_t i = 0; i < kWays; ++i)
      if (ways[i].weight == weight && ways[i].n == n) return &ways[i];
    return nullptr;
  }
  Seen* newcomers_place(const float* weight, int64_t n) {
    Seen* ways = place(weight, n);
    return ways[0].repeats <= ways[1].repeats ? &ways[0] : &ways[1];
  }

  std::mutex mutex_;
  Seen seen_[kPlaces][kWays] = {};
};

// The process's.
inline Foreseen& foreseen() {
  static Foreseen only;
  return only;
}

}  // namespace nft
