// Every piece runs once, a phase sees all of the one before it, and a piece that throws leaves no thread waiting. Under
// ThreadSanitizer (make tsan) this also shows that the phases need no other synchronisation.
#include "cpu/torch/work_queue.h"

#include <new>
#include <stdexcept>
#include <string>

#include "tests/check.h"

using nft::Phase;
using nft_test::expect;

namespace {

// As torch's parallel_for does it: the caller works too.
void run(const std::vector<Phase>& phases, int threads) {
  nft::WorkQueue queue(phases);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&] { queue.work(); });
  queue.work();
  for (std::thread& other : others) other.join();
  queue.rethrow();
}

// Each phase adds up what the phase before it wrote with plain stores.
void phases_follow_each_other(int threads, int64_t pieces) {
  std::vector<int64_t> first((size_t)pieces, 0), second((size_t)pieces, 0);
  std::vector<int64_t> sums(1, 0);
  run({{pieces, [&](int64_t i) { first[(size_t)i] += i + 1; }},
       {pieces,
        [&](int64_t i) {
          second[(size_t)i] = first[(size_t)i] + first[(size_t)(pieces - 1 - i)];  // of other threads
        }},
       {1,
        [&](int64_t) {
          for (int64_t value : second) sums[0] += value;
        }}},
      threads);
  expect(sums[0] == pieces * (pieces + 1), "%d threads, %ld pieces: %ld", threads, (long)pieces, (long)sums[0]);
}

void tiles_cover_all(int64_t n, int64_t size) {
  std::vector<int> seen((size_t)n, 0);
  run({Phase::tiles(n, size,
                    [&](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) ++seen[(size_t)i];
                    })},
      3);
  for (int64_t i = 0; i < n; ++i) expect(seen[(size_t)i] == 1, "item %ld of %ld: %d times", (long)i, (long)n, seen[i]);
}

void joined_phases_run_all_parts() {
  std::vector<int> seen(3 + 0 + 5, 0);
  const auto part = [&](int first) { return [&seen, first](int64_t i) { ++seen[(size_t)(first + i)]; }; };
  run({Phase::joined({{3, part(0)}, {0, part(3)}, {5, part(3)}}), Phase::joined({})}, 4);
  for (int count : seen) expect(count == 1, "a piece ran %d times", count);
}

void a_throwing_piece_ends_the_work(int threads, int64_t thrower) {
  std::atomic<bool> later{false};
  std::string caught;
  try {
    run({{100,
          [&](int64_t i) {
            if (i == thrower) throw std::bad_alloc();
          }},
         {100, [&](int64_t) { later = true; }}},
        threads);
  } catch (const std::bad_alloc&) {
    caught = "bad_alloc";
  }
  expect(caught == "bad_alloc" && !later, "%d threads, piece %ld: caught '%s', later phase %d", threads, (long)thrower,
         caught.c_str(), (int)later);
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8})
    for (int64_t pieces : {1, 2, 7, 1000})
      for (int repeat = 0; repeat < 20; ++repeat) phases_follow_each_other(threads, pieces);
  for (int64_t n : {0, 1, 255, 256, 257}) tiles_cover_all(n, 64);
  joined_phases_run_all_parts();
  for (int threads : {1, 2, 8})
    for (int64_t thrower : {0, 50, 99}) a_throwing_piece_ends_the_work(threads, thrower);
  return nft_test::exit_code("work_queue");
}
