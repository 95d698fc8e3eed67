// A tensor's torch device for one call: current, with torch's stream on it, and known to be served by this build.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <atomic>

#include "cuda/torch/architecture.h"
#include "operators/aten.h"

namespace nft {

// Throws if this library has no code for the current device. Each
// device is asked once, for two attributes, without waiting.
inline void check_architecture(int device) {
  static std::atomic<bool> served[64];
  std::atomic<bool>* const known = device < 64 ? &served[device] : nullptr;
  if (known && known->load(std::memory_order_relaxed)) return;
  int major = 0, minor = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (const auto why = cuda::why_not_served(major, minor, NFT_CUDA_HOLDS))
    throw std::runtime_error("nft_ext: device cuda:" + std::to_string(device) + " " + *why);
  if (known) known->store(true, std::memory_order_relaxed);
}

// Makes a tensor's torch device current for a scope, and finds torch's stream on it.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& t) : guard_(t.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &current));
    stream_ = static_cast<cudaStream_t>(current);
    // The CUDA runtime linked into this library keeps its own current device: it must be torch's.
    STD_CUDA_CHECK(cudaSetDevice(t.get_device_index()));
    check_architecture(t.get_device_index());
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace nft
