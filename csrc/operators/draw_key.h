// The key of a fresh chip. The seed is what torch.randint(2**63 - 1, (1, 1)) draws from torch's generator of that
// device; the draw is number 0 of the training domain. Python defines the schema and the fake kernel.
#pragma once

#include "operators/aten.h"

namespace nft {

// [1, 2] int64, on the torch device of `like`.
inline Tensor draw_key(Tensor like) {
  constexpr int64_t kTrainingDraw = int64_t(1) << 32;  // domain 1: core/philox.h
  Tensor key = aten::empty({1, 2}, ScalarType::Long, like);
  if (like.is_cpu()) {
    const Tensor seed = aten::empty({1}, ScalarType::Long, like);
    aten::random_(seed, INT64_MAX);
    int64_t* row = static_cast<int64_t*>(key.data_ptr());
    row[0] = *static_cast<const int64_t*>(seed.data_ptr());
    row[1] = kTrainingDraw;
  } else {
    aten::random_(torch::stable::narrow(key, 1, 0, 1), INT64_MAX);
    torch::stable::fill_(torch::stable::narrow(key, 1, 1, 1), (double)kTrainingDraw);
  }
  return key;
}

// The keys that `count` calls of draw_key give, one after the other.
inline std::vector<Tensor> draw_keys(Tensor like, int64_t count) {
  check(count >= 0 && count <= 1 << 20, "draw_keys", "count", "must be in 0..2^20, the number of layers", count);
  std::vector<Tensor> keys;
  for (int64_t i = 0; i < count; ++i) keys.push_back(draw_key(like));
  return keys;
}

}  // namespace nft
