// A queue of pieces of work for torch's threads: each thread takes the next piece when it is done with its last one.
// torch's parallel_for cuts the range into equal parts instead, and then the slowest thread decides.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace nft {

// Pieces 0 .. pieces - 1, in any order and on any thread.
struct Phase {
  int64_t pieces;
  std::function<void(int64_t piece)> run;

  // f(begin, end) for pieces of `size` items that tile [0, n).
  template <class F>
  static Phase tiles(int64_t n, int64_t size, F f) {
    return {(n + size - 1) / size, [=](int64_t i) { f(i * size, std::min(n, (i + 1) * size)); }};
  }

  // One phase of all pieces of `parts`, which may run at the same time.
  static Phase joined(std::vector<Phase> parts) {
    std::vector<int64_t> ends;
    for (const Phase& part : parts) ends.push_back((ends.empty() ? 0 : ends.back()) + part.pieces);
    return {ends.empty() ? 0 : ends.back(), [=](int64_t i) {
              const size_t p = (size_t)(std::upper_bound(ends.begin(), ends.end(), i) - ends.begin());
              parts[p].run(i - (p ? ends[p - 1] : 0));
            }};
  }
};

// Runs the phases in order, each after the previous one is done, in one parallel region.
// Waking the threads costs as much as a small layer; `on_this_thread` avoids it. No
// thread waits for a piece that no thread works on, however many threads torch provides.
inline void run_phases(const std::vector<Phase>& phases, bool on_this_thread = false) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  int64_t most = 0;
  for (const Phase& phase : phases) most = std::max(most, phase.pieces);
  const int64_t threads = std::min<int64_t>(most, torch::stable::get_num_threads());
  if (on_this_thread || threads <= 1) {
    for (const Phase& phase : phases)
      for (int64_t i = 0; i < phase.pieces; ++i) phase.run(i);
    return;
  }
  const std::unique_ptr<Progress[]> progress(new Progress[phases.size()]);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (size_t p = 0; p < phases.size(); ++p) {
      Progress& now = progress[p];
      for (int64_t i; (i = now.next.fetch_add(1, std::memory_order_relaxed)) < phases[p].pieces;) {
        phases[p].run(i);
        now.done.fetch_add(1, std::memory_order_release);
      }
      if (p + 1 == phases.size()) return;
      for (int spins = 0; now.done.load(std::memory_order_acquire) < phases[p].pieces;)
        if (++spins > 2000) std::this_thread::yield();
    }
  });
}

// f(begin, end) for pieces of `size` items that tile [0, n).
template <class F>
void run_tiles(int64_t n, int64_t size, const F& f) {
  run_phases({Phase::tiles(n, size, [&f](int64_t begin, int64_t end) { f(begin, end); })});
}

}  // namespace nft
