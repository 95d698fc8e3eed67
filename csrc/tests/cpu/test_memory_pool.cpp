// A piece belongs to one holder at a time, is large and aligned enough, and what waits is bounded. `make asan` shows
// that no piece is used after it is freed, `make tsan` that threads may share the pool.
#include "cpu/torch/memory_pool.h"

#include <string.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/check.h"

using nft::MemoryPool;
using nft_test::expect;

namespace {

using Piece = MemoryPool::Piece;

void a_piece_comes_back() {
  MemoryPool pool;
  const Piece large = pool.take(1 << 20), small = pool.take(1 << 16);
  expect(large.memory != small.memory, "two holders of one piece");
  expect((uintptr_t)large.memory % MemoryPool::kPage == 0 && large.capacity >= 1 << 20, "a piece that does not fit");
  pool.give(small);
  pool.give(large);
  expect(pool.take((1 << 20) - 5).memory == large.memory, "not the piece that fits");
  const Piece tiny = pool.take(100);
  expect(tiny.memory == small.memory, "not the piece of a fitting size");
  pool.give(large);
  pool.give(tiny);
}

void what_waits_is_bounded() {
  MemoryPool pool;
  std::vector<Piece> pieces;
  for (int i = 0; i < 40; ++i) pieces.push_back(pool.take(4 << 20));
  for (const Piece& piece : pieces) pool.give(piece);  // 160 MiB: the oldest are freed
  int again = 0;
  std::vector<Piece> taken;
  for (int i = 0; i < 32; ++i) {
    taken.push_back(pool.take(4 << 20));
    for (const Piece& piece : pieces) again += piece.memory == taken.back().memory;
  }
  expect(again >= 32, "%d of 32 waiting pieces came back", again);
  for (const Piece& piece : taken) pool.give(piece);
  pool.release();
  const Piece fresh = pool.take(4 << 20);
  memset(fresh.memory, 1, fresh.capacity);
  pool.give(fresh);
}

void too_much_is_an_error() {
  MemoryPool pool;
  pool.give(pool.take(1 << 20));
  bool thrown = false;
  try {
    pool.take(size_t(1) << 60);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  expect(thrown, "an allocation that cannot be made is no error");
}

// Each holder writes its mark all over its piece: another holder at the same time would change it.
void threads_share_the_pool() {
  MemoryPool pool;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      nft_test::Words words((uint64_t)t);
      for (int i = 0; i < 300; ++i) {
        const size_t bytes = MemoryPool::kLeast + words.next() % (1 << 16);
        const Piece piece = pool.take(bytes);
        char* memory = static_cast<char*>(piece.memory);
        memset(memory, t, bytes);
        if (memory[0] != t || memory[bytes / 2] != t || memory[bytes - 1] != t) ++wrong;
        pool.give(piece);
        if (i % 100 == 50) pool.release();
      }
    });
  for (std::thread& thread : threads) thread.join();
  expect(wrong == 0, "%d pieces had two holders", (int)wrong);
}

}  // namespace

int main() {
  a_piece_comes_back();
  what_waits_is_bounded();
  too_much_is_an_error();
  threads_share_the_pool();
  return nft_test::exit_code("memory_pool");
}
