// Deals pieces of work to torch's threads one after the other: a thread that starts late or runs slowly gets fewer of them.
// torch's own parallel_for cuts the range into equal parts beforehand, and the slowest thread then decides.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <thread>

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

// Two such ranges in one parallel region: g(begin, end, h()) follows once every piece of the first range is done; h is called
// once by each thread in between. One region, because waking the threads twice costs as much as a small layer. Nobody waits
// for a piece that nobody works on, whatever number of threads really comes. The second range runs backwards: what was
// touched last is still in the cache.
template <class F, class H, class G>
void deal_twice(int64_t n, int64_t piece, const F& f, const H& h, int64_t m, int64_t second_piece, const G& g) {
  const int64_t pieces = (n + piece - 1) / piece, second_pieces = (m + second_piece - 1) / second_piece;
  std::atomic<int64_t> next{0}, done{0}, left{second_pieces};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < pieces; i = next.fetch_add(1, std::memory_order_relaxed)) {
      f(i * piece, std::min(n, (i + 1) * piece));
      done.fetch_add(1, std::memory_order_release);
    }
    for (int spins = 0; done.load(std::memory_order_acquire) < pieces;)
      if (++spins > 2000) std::this_thread::yield();
    const auto between = h();
    for (int64_t i = left.fetch_sub(1, std::memory_order_relaxed); i > 0; i = left.fetch_sub(1, std::memory_order_relaxed))
      g((i - 1) * second_piece, std::min(m, i * second_piece), between);
  };
  const int64_t threads = std::min<int64_t>(std::max(pieces, second_pieces), torch::stable::get_num_threads());
  if (threads <= 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, work);
}

}  // namespace nft
