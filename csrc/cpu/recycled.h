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
    const Block block = instance().take((bytes + kPage - 1) / kPage * kPage);
    check(block.memory != nullptr, "program", "memory", "must suffice for one layer's weights", bytes);
    return torch::stable::from_blob(block.memory, sizes, strides, like.device(), dtype,
                                    [block](void*) { instance().give(block); });
  }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kLeast = size_t(64) << 10;   // below, malloc keeps its own pages
  static constexpr size_t kMost = size_t(128) << 20;   // above, clearing pages is small beside the work
  static constexpr size_t kKept = size_t(128) << 20;   // at most so much waits unused
  static constexpr size_t kSpare = 16;                 // a block serves requests down to a sixteenth of its size

  struct Block {
    void* memory;
    size_t capacity;
  };

  // Never destroyed: tensors may outlive the library's statics.
  static Recycled& instance() {
    static Recycled* only = new Recycled;
    return *only;
  }

  // The block given back last that is large enough, but not absurdly so: one block then serves layer after layer and
  // stays in the cache.
  Block take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = free_.size(); i-- > 0;) {
        if (free_[i].capacity < bytes || free_[i].capacity > kSpare * bytes) continue;
        const Block block = free_[i];
        free_.erase(free_.begin() + (long)i);
        kept_ -= block.capacity;
        return block;
      }
    }
    return {aligned_alloc(kPage, bytes), bytes};
  }

  void give(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
    kept_ += block.capacity;
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
