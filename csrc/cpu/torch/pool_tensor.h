// Tensors in the memory pool.
#pragma once

#include "cpu/torch/memory_pool.h"
#include "operators/aten.h"

namespace nft {

// One for the process. Never destroyed: tensors may outlive the library's statics.
inline MemoryPool& memory_pool() {
  static MemoryPool* only = new MemoryPool;
  return *only;
}

// A dense row-major tensor, uninitialised.
inline Tensor pool_tensor(const Ints& sizes, ScalarType dtype, const Tensor& like) {
  const size_t bytes = (size_t)elements_of(sizes) * (dtype == ScalarType::Float ? 4 : 2);
  if (!MemoryPool::serves(bytes)) return aten::empty(sizes, dtype, like);
  Ints strides(sizes.size(), 1);
  for (int i = (int)sizes.size() - 2; i >= 0; --i) strides[i] = strides[i + 1] * sizes[i + 1];
  const MemoryPool::Piece piece = memory_pool().take(bytes);
  return torch::stable::from_blob(piece.memory, sizes, strides, like.device(), dtype,
                                  [piece](void*) { memory_pool().give(piece); });
}

}  // namespace nft
