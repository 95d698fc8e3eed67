// The work queue on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "cpu/torch/work_queue.h"

namespace nft {

// Runs the phases in order, each after the previous one is done, in one parallel region.
// Waking the threads costs as much as a small layer; `on_this_thread` avoids it.
inline void run_phases(const std::vector<Phase>& phases, bool on_this_thread = false) {
  const int64_t threads =
      on_this_thread ? 1 : std::min<int64_t>(useful_threads(phases), torch::stable::get_num_threads());
  if (threads <= 1) return run_on_this_thread(phases);
  WorkQueue queue(phases);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { queue.work(); });
  queue.rethrow();
}

// f(begin, end) for pieces of `size` items that tile [0, n).
template <class F>
void run_tiles(int64_t n, int64_t size, const F& f) {
  run_phases({Phase::tiles(n, size, [&f](int64_t begin, int64_t end) { f(begin, end); })});
}

}  // namespace nft
