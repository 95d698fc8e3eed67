// Memory for results and scratch that keeps its pages. In a fresh allocation of a layer's size the operating system
// clears each page at its first use, which costs more than sampling into it. So freed pieces wait here for the next
// result. No torch in here.
#pragma once

#include <stddef.h>
#include <stdlib.h>

#include <mutex>
#include <new>
#include <vector>

namespace nft {

class MemoryPool {
 public:
  struct Piece {
    void* memory;
    size_t capacity;
  };

  static constexpr size_t kPage = 4096;
  static constexpr size_t kLeast = size_t(64) << 10;  // smaller: malloc keeps its own pages
  static constexpr size_t kMost = size_t(128) << 20;  // larger: clearing pages costs little beside the work
  static constexpr size_t kKept = size_t(128) << 20;  // the most that waits unused
  static constexpr size_t kSpare = 16;                // a piece serves requests down to 1/16 of its size

  MemoryPool() = default;
  MemoryPool(const MemoryPool&) = delete;
  ~MemoryPool() { release(); }

  static bool serves(size_t bytes) { return bytes >= kLeast && bytes <= kMost; }

  // At least `bytes`. Of the pieces with a fitting size, the one given back last: one
  // piece then serves layer after layer and stays in the cache. Throws std::bad_alloc.
  Piece take(size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = free_.size(); i-- > 0;) {
        if (free_[i].capacity < bytes || free_[i].capacity > kSpare * bytes) continue;
        const Piece piece = free_[i];
        free_.erase(free_.begin() + (long)i);
        kept_ -= piece.capacity;
        return piece;
      }
    }
    void* memory = aligned_alloc(kPage, bytes);
    if (!memory) {
      release();
      memory = aligned_alloc(kPage, bytes);
    }
    if (memory) return {memory, bytes};
    throw std::bad_alloc();
  }

  void give(Piece piece) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      free_.push_back(piece);
    } catch (const std::bad_alloc&) {
      free(piece.memory);
      return;
    }
    kept_ += piece.capacity;
    while (kept_ > kKept) {  // the oldest goes
      kept_ -= free_.front().capacity;
      free(free_.front().memory);
      free_.erase(free_.begin());
    }
  }

  // Returns all waiting pieces to the operating system.
  void release() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Piece& piece : free_) free(piece.memory);
    free_.clear();
    kept_ = 0;
  }

 private:
  std::mutex mutex_;
  std::vector<Piece> free_;
  size_t kept_ = 0;
};

}  // namespace nft
