// Up to how many columns a chip the fused products are taken, by device, direction and type (nft_ext/choice.py says why
// and how they are measured). Read at every product, set seldom, from any thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "store.h"

namespace nft {
namespace cuda {

enum class Direction { kForward = 0, kInputGradient = 1 };

class FusedColumns {
 public:
  // As measured on an H100 (stage tune of bench/results/2026-11-26-h100-octets.json and -cudnn-epilogue.json: 16 and 32 columns in float32): in
  // 16 bits the library's product wins, with weights that were programmed first, however few the columns. By direction and type;
  // nft_ext/choice.py has the same numbers.
  static constexpr int64_t kDefault[2][3] = {{32, 0, 0}, {0, 0, 0}};
  static constexpr int kDevices = 64;       // those beyond keep the default
  static constexpr int kTypes = 3;          // float32, bfloat16, float16, as in OutType

  FusedColumns() {
    for (auto& device : columns_)
      for (int d = 0; d < 2; ++d)
        for (int t = 0; t < kTypes; ++t) device[d][t].store(kDefault[d][t], std::memory_order_relaxed);
  }

  int64_t most(int device, Direction direction, OutType type) const {
    if (device < 0 || device >= kDevices) return kDefault[(int)direction][(int)type];
    return columns_[device][(int)direction][(int)type].load(std::memory_order_relaxed);
  }

  // Nothing happens where an index is out of range.
  void set(int device, int direction, int type, int64_t columns) {
    if (device < 0 || device >= kDevices || direction < 0 || direction > 1 || type < 0 || type >= kTypes) return;
    columns_[device][direction][type].store(columns, std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> columns_[kDevices][2][kTypes];
};

}  // namespace cuda
}  // namespace nft
