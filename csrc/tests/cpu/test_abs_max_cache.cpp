// The cache expects a value only after it came true often enough, only for the same weights, and seldom wrongly.
#include "cpu/torch/abs_max_cache.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "tests/check.h"

using nft::AbsMaxCache;
using nft_test::expect;

namespace {

const float* const kWeight = reinterpret_cast<const float*>(uintptr_t(0x10000));
constexpr int64_t kCount = 1000;

std::unique_ptr<AbsMaxCache> noted(int times, uint32_t abs_max = 7) {
  std::unique_ptr<AbsMaxCache> f(new AbsMaxCache);
  for (int i = 0; i < times; ++i) f->note(kWeight, kCount, abs_max);
  return f;
}

void only_what_repeats() {
  for (int times = 0; times < 40; ++times) {
    const uint32_t guess = noted(times)->expected(kWeight, kCount);
    expect(guess == (times < 3 ? 0u : 7u), "%u after %d calls with the same weights", guess, times);
  }
}

void only_for_these_weights() {
  const auto f = noted(10);
  expect(f->expected(kWeight + 1, kCount) == 0 && f->expected(kWeight, kCount + 1) == 0, "a guess for other weights");
  expect(f->expected({kWeight, nft::WeightType::kBFloat16}, kCount) == 0, "a guess for weights of another type");
  for (int64_t n = 1; n < 200000; ++n)  // many of them meet in the same place
    if (n != kCount)
      for (int i = 0; i < 12; ++i) f->note(kWeight, n, 9);
  expect(f->expected(kWeight, kCount) == 0, "a guess that should have been pushed out");
}

// The layers of a network in turns, wherever they lie: all are remembered. (Three in one place would lose one.)
void many_weights() {
  AbsMaxCache f;
  constexpr int kLayers = 60;
  int guessed = 0;
  for (int call = 0; call < 10; ++call)
    for (int layer = 0; layer < kLayers; ++layer) {
      guessed += f.expected(kWeight + 4096 * layer, kCount) == 5;
      f.note(kWeight + 4096 * layer, kCount, 5);
    }
  expect(guessed >= 7 * (kLayers - 1), "%d guesses for %d layers in ten rounds", guessed, kLayers);
}

// Weights new every `period` calls, as training makes them, after `before` calls with others: few wrong guesses in all,
// and right ones where most could be.
void changing_weights(int period, int before) {
  AbsMaxCache f;
  for (int call = 0; call < before; ++call) f.note(kWeight, kCount, 1);
  int right = 0, wrong = 0;
  for (int call = 0; call < 5000; ++call) {
    const uint32_t truth = 2 + (uint32_t)(call / period);
    if (const uint32_t guess = f.expected(kWeight, kCount)) ++(guess == truth ? right : wrong);
    f.note(kWeight, kCount, truth);
  }
  const int most = period <= 128 ? 4 : 4 + 5000 / period;
  expect(wrong <= most, "weights new every %d calls, %d before: %d wrong guesses, %d right ones", period, before, wrong,
         right);
  if (period >= 400) expect(right > 3000, "weights new every %d calls: %d right guesses of 5000", period, right);
}

// Weights that several threads program at once, each with one value: never another weight's value.
void threads_share_the_cache() {
  const std::unique_ptr<AbsMaxCache> f(new AbsMaxCache);
  std::atomic<int> guesses{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int call = 0; call < 2000; ++call) {
        const int layer = (call + t) % 7;
        const uint32_t truth = 100 + (uint32_t)layer, guess = f->expected(kWeight + 4096 * layer, kCount);
        if (guess != 0) ++(guess == truth ? guesses : wrong);
        f->note(kWeight + 4096 * layer, kCount, truth);
      }
    });
  for (std::thread& thread : threads) thread.join();
  expect(wrong == 0 && guesses > 4000, "%d wrong values, %d right ones", (int)wrong, (int)guesses);
}

}  // namespace

int main() {
  only_what_repeats();
  only_for_these_weights();
  many_weights();
  threads_share_the_cache();
  for (int period = 1; period <= 600; ++period)
    for (int before : {0, 1, 3, 20, 500}) changing_weights(period, before);
  return nft_test::exit_code("abs_max_cache");
}
