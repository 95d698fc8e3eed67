// Result and scratch memory that keeps its pages. A fresh allocation of a layer's size is unmapped memory: the kernel
// clears each page at its first touch, which costs more than sampling into it. Freed blocks wait here for the next result.
#pragma once

#include <stdlib.h>

#include <mutex>
#include <vector>

#include "../aten.h"

namespace nft {

class Recycled {
 public:
  // A dense row-major tensor, uninitialised.
  static Tensor empty(const Ints& sizes, ScalarType dtype, const Tensor& like) {
    size_t bytes = dtype == ScalarType::Float ? 4 : 2;
    for (int64_t size : sizes) bytes *= (size_t)size;
    if (bytes < kLeast || bytes > kMost) return aten::empty(sizes, dtype, like);
    Ints strides(sizes.size(), 1);
    for (int i = (int)sizes.size() - 2; i >= 0; --i) strides[i] = strides[i + 1] * sizes[i + 1];
    const size_t capacity = (bytes + kPage - 1) / kPage * kPage;
    void* memory = instance().take(capacity);
    check(memory != nullptr, "program", "memory", "must suffice for one layer's weights", bytes);
    return torch::stable::from_blob(memory, sizes, strides, like.device(), dtype,
                                    [capacity](void* block) { instance().give(block, capacity); });
  }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kLeast = size_t(64) << 10;   // below, malloc keeps its own pages
  static constexpr size_t kMost = size_t(128) << 20;   // above, clearing pages is small beside the work
  static constexpr size_t kKept = size_t(128) << 20;   // at most so much waits unused

  struct Block {
    void* memory;
    size_t capacity;
  };

  // Never destroyed: tensors may outlive the library's statics.
  static Recycled& instance() {
    static Recycled* only = new Recycled;
    return *only;
  }

  void* take(size_t capacity) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = free_.size(); i-- > 0;) {  // the newest first: its pages are warmest
        if (free_[i].capacity != capacity) continue;
        void* memory = free_[i].memory;
        free_.erase(free_.begin() + (long)i);
        kept_ -= capacity;
        return memory;
      }
    }
    return aligned_alloc(kPage, capacity);
  }

  void give(void* memory, size_t capacity) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back({memory, capacity});
    kept_ += capacity;
    while (kept_ > kKept) {  // the oldest goes
      kept_ -= free_.front().capacity;
      free(free_.front().memory);
      free_.erase(free_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Block> free_;
  size_t kept_ = 0;
};

}  // namespace nft
