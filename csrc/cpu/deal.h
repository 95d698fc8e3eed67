// Deals pieces of work to torch's threads one after the other: a thread that starts late or runs slowly gets fewer of them.
// torch's own parallel_for cuts the range into equal parts beforehand, and the slowest thread then decides.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace nft {

// Calls f(begin, end) for pieces of `piece` items that tile [0, n), in any order and on any thread.
template <class F>
void deal(int64_t n, int64_t piece, const F& f) {
  const int64_t pieces = (n + piece - 1) / piece;
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < pieces; i = next.fetch_add(1, std::memory_order_relaxed))
      f(i * piece, std::min(n, (i + 1) * piece));
  };
  const int64_t threads = std::min<int64_t>(pieces, torch::stable::get_num_threads());
  if (threads <= 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, work);
}

}  // namespace nft
