// Memory for results and scratch that keeps its pages. In a fresh allocation of a
// layer's size the operating system clears each page at its first use, which costs
// more than sampling into it. So freed pieces wait here for the next result.
#pragma once

#include <stdlib.h>

#include <mutex>
#include <vector>

#include "operators/aten.h"

namespace nft {

class MemoryPool {
 public:
  // A dense row-major tensor, uninitialised.
  static Tensor empty(const Ints& sizes, ScalarType dtype, const Tensor& like) {
    size_t bytes = dtype == ScalarType::Float ? 4 : 2;
    for (int64_t size : sizes) bytes *= (size_t)size;
    if (bytes < kLeast || bytes > kMost) return aten::empty(sizes, dtype, like);
    Ints strides(sizes.size(), 1);
    for (int i = (int)sizes.size() - 2; i >= 0; --i) strides[i] = strides[i + 1] * sizes[i + 1];
    const Piece piece = instance().take((bytes + kPage - 1) / kPage * kPage);
    check(piece.memory != nullptr, "program", "memory", "must suffice for one layer's weights", bytes);
    return torch::stable::from_blob(piece.memory, sizes, strides, like.device(), dtype,
                                    [piece](void*) { instance().give(piece); });
  }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kLeast = size_t(64) << 10;  // smaller: malloc keeps its own pages
  static constexpr size_t kMost = size_t(128) << 20;  // larger: clearing pages costs little beside the work
  static constexpr size_t kKept = size_t(128) << 20;  // the most that waits unused
  static constexpr size_t kSpare = 16;                // a piece serves requests down to 1/16 of its size

  struct Piece {
    void* memory;
    size_t capacity;
  };

  // Never destroyed: tensors may outlive the library's statics.
  static MemoryPool& instance() {
    static MemoryPool* only = new MemoryPool;
    return *only;
  }

  // The piece given back last, of those with a fitting size: one
  // piece then serves layer after layer and stays in the cache.
  Piece take(size_t bytes) {
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
    return {aligned_alloc(kPage, bytes), bytes};
  }

  void give(Piece piece) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(piece);
    kept_ += piece.capacity;
    while (kept_ > kKept) {  // the oldest goes
      kept_ -= free_.front().capacity;
      free(free_.front().memory);
      free_.erase(free_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Piece> free_;
  size_t kept_ = 0;
};

}  // namespace nft
