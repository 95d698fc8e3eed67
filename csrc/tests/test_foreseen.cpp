// A guess is given where it has come true often enough, for the same weights only, and is dropped where it fails too often.
#include "../cpu/foreseen.h"

#include <memory>

#include "check.h"

using nft::Foreseen;
using nft_test::expect;

namespace {

const float* const kWeight = reinterpret_cast<const float*>(uintptr_t(0x10000));
constexpr int64_t kCount = 1000;

std::unique_ptr<Foreseen> seen(int times, uint32_t largest = 7) {
  std::unique_ptr<Foreseen> f(new Foreseen);
  for (int i = 0; i < times; ++i) f->found(kWeight, kCount, largest);
  return f;
}

void only_what_repeats() {
  for (int times = 0; times < 40; ++times) {
    const uint32_t guess = seen(times)->largest(kWeight, kCount);
    expect(guess == (times < 3 ? 0u : 7u), "%u after %d calls with the same weights", guess, times);
  }
}

void only_for_these_weights() {
  const auto f = seen(10);
  expect(f->largest(kWeight + 1, kCount) == 0 && f->largest(kWeight, kCount + 1) == 0, "a guess for other weights");
  for (int64_t n = 1; n < 200000; ++n)  // all of them meet in the same places now and then
    if (n != kCount) f->found(kWeight, n, 9);
  expect(f->largest(kWeight, kCount) == 0, "a guess that should have been pushed out");
}

// Weights new every `period` calls, as training makes them: but for a few at the start, guesses must come true often enough.
void worth_the_risk(int period, bool worth) {
  Foreseen f;
  int right = 0, wrong = 0;
  for (int call = 0; call < 5000; ++call) {
    const uint32_t truth = 1 + (uint32_t)(call / period);
    if (const uint32_t guess = f.largest(kWeight, kCount)) ++(guess == truth ? right : wrong);
    f.found(kWeight, kCount, truth);
  }
  expect(wrong * 6 <= right + 24, "weights new every %d calls: %d wrong guesses, %d right ones", period, wrong, right);
  expect((right > 4000) == worth, "weights new every %d calls: %d right guesses of 5000", period, right);
}

}  // namespace

int main() {
  only_what_repeats();
  only_for_these_weights();
  for (int period : {1, 2, 3, 6}) worth_the_risk(period, false);
  for (int period : {8, 10, 200}) worth_the_risk(period, true);
  return nft_test::finish("foreseen");
}
