// A queue of pieces of work: each thread takes the next piece when it is done with its last one. Equal parts for all
// threads, as torch's parallel_for gives them, would let the slowest thread decide. No torch in here.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
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

// The phases, shared by the threads that run them.
class WorkQueue {
 public:
  explicit WorkQueue(const std::vector<Phase>& phases) : phases_(phases), progress_(new Progress[phases.size()]) {}

  // Each thread calls this once. No thread waits for a piece that no thread works on, however many threads there are.
  // After a piece has thrown, the pieces that follow are skipped, so that no thread waits for ever.
  void work() {
    for (size_t p = 0; p < phases_.size(); ++p) {
      Progress& now = progress_[p];
      for (int64_t i; (i = now.next.fetch_add(1, std::memory_order_relaxed)) < phases_[p].pieces;) {
        if (!failed_.load(std::memory_order_relaxed)) run(phases_[p], i);
        now.done.fetch_add(1, std::memory_order_release);
      }
      if (p + 1 == phases_.size()) return;
      for (int spins = 0; now.done.load(std::memory_order_acquire) < phases_[p].pieces;)
        if (++spins > 2000) std::this_thread::yield();
    }
  }

  // Call after all threads are done. Throws the first error of a piece: bad_alloc, or one with its words.
  void rethrow() const {
    if (out_of_memory_) throw std::bad_alloc();
    if (failed_) throw std::runtime_error(error_);
  }

 private:
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };

  void run(const Phase& phase, int64_t piece) {
    try {
      phase.run(piece);
    } catch (const std::bad_alloc&) {
      if (!failed_.exchange(true)) out_of_memory_ = true;
    } catch (const std::exception& error) {
      if (!failed_.exchange(true)) error_ = error.what();
    }
  }

  const std::vector<Phase>& phases_;
  std::unique_ptr<Progress[]> progress_;
  std::atomic<bool> failed_{false};
  bool out_of_memory_ = false;
  std::string error_;  // no exception_ptr: the library would need symbols of one libstdc++
};

inline void run_on_this_thread(const std::vector<Phase>& phases) {
  for (const Phase& phase : phases)
    for (int64_t i = 0; i < phase.pieces; ++i) phase.run(i);
}

// The most threads that can have work at once.
inline int64_t useful_threads(const std::vector<Phase>& phases) {
  int64_t most = 0;
  for (const Phase& phase : phases) most = std::max(most, phase.pieces);
  return most;
}

}  // namespace nft
