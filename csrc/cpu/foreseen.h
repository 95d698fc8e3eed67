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
    const Seen& seen = place(weight, n);
    return seen.weight == weight && seen.n == n && seen.score >= kTrusted ? seen.largest : 0;
  }

  // What a call found, whether it had guessed or not.
  void found(const float* weight, int64_t n, uint32_t largest) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Seen& seen = place(weight, n);
    if (seen.weight != weight || seen.n != n) {
      seen = {weight, n, largest, 0};
    } else if (seen.largest == largest) {
      seen.score += seen.score < kMost;
    } else {
      seen.largest = largest;
      seen.score = seen.score - kWrong < kLeast ? kLeast : seen.score - kWrong;
    }
  }

 private:
  // A wrong guess costs a pass of sampling, five or six times what a right one spares, so it takes as many right ones to make up.
  static constexpr int kTrusted = 2, kWrong = 6, kMost = 12, kLeast = -12;
  static constexpr size_t kPlaces = 1024;

  struct Seen {
    const float* weight;
    int64_t n;
    uint32_t largest;
    int score;
  };

  Seen& place(const float* weight, int64_t n) {
    const uint64_t mixed = ((uint64_t)(uintptr_t)weight ^ (uint64_t)n << 40) * 0x9e3779b97f4a7c15u;
    return seen_[mixed >> 54];
  }

  std::mutex mutex_;
  Seen seen_[kPlaces] = {};
};

}  // namespace nft
