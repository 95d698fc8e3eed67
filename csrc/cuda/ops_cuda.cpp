// The operators on CUDA: the sampler on the current stream of the weight's device. No value is read back, no call waits.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../product.h"
#include "sampler.h"

namespace nft {
namespace {

// Makes a tensor's device current for a scope, and finds torch's stream on it.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : guard_(t.get_device_index()) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &current));
    stream_ = static_cast<cudaStream_t>(current);
    // This library holds a CUDA runtime of its own, whose idea of the current device must be torch's.
    STD_CUDA_CHECK(cudaSetDevice(t.get_device_index()));
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

void check_beside(const char* op, const char* argument, const Tensor& t, const Tensor& weight) {
  check(t.is_cuda() && t.get_device_index() == weight.get_device_index(), op, argument, "must be on the weight's device",
        "another device");
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

cuda::OutType out_type(const Tensor& out) {
  switch (out.scalar_type()) {
    case ScalarType::BFloat16: return cuda::OutType::kBFloat16;
    case ScalarType::Half: return cuda::OutType::kFloat16;
    default: return cuda::OutType::kFloat32;
  }
}

// s = fl(max|W| / (2^M - 1)); NaN where a weight is not finite: an error would have to wait for the device.
Tensor weight_step(Tensor weight, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "weight_step", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "weight_step", "weight_bits", "must be in 1..16", weight_bits);
  const OnDevice here(weight);
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor step = aten::empty({}, ScalarType::Float, weight);
  STD_CUDA_CHECK(cuda::weight_step(floats(dense), dense.numel(), (int)weight_bits, static_cast<float*>(step.data_ptr()),
                                   here.stream()));
  return step;
}

struct Cuda {
  // torch's caching allocator reuses the memory of the last call, in the order of the stream.
  static Tensor memory(const Ints& sizes, ScalarType dtype, const Tensor& like) { return aten::empty(sizes, dtype, like); }

  static void program(Crossbar& c, const Tensor& out, int64_t first_chip, int64_t chips) {
    check(c.weight.is_cuda(), c.op, "weight", "must be on CUDA like the other tensors", "another device");
    if (!c.step) c.step = weight_step(c.weight, c.device[0]);
    check_beside(c.op, "step", *c.step, c.weight);
    check_beside(c.op, "table", c.table, c.weight);
    check_beside(c.op, "key", c.key, c.weight);
    if (c.codes) check_beside(c.op, "codes", *c.codes, c.weight);
    const OnDevice here(c.weight);
    const Tensor dense = c.codes ? c.weight : torch::stable::contiguous(c.weight);
    cuda::Program p;
    p.n = c.weight.numel();
    p.weight = c.codes ? nullptr : floats(dense);
    p.codes = c.codes ? c.codes->data_ptr() : nullptr;
    p.weight_bits = (int)c.device[0];
    p.device_bits = (int)c.device[1];
    p.code_bytes = p.weight_bits <= 15 ? 2 : 4;
    p.path = (int)c.device[2];
    p.mapping = (int)c.device[3];
    p.step = floats(*c.step);
    p.table = floats(c.table);
    p.keys = static_cast<const int64_t*>(c.key.data_ptr()) + 2 * first_chip;
    p.chips = chips;
    p.stream = (uint32_t)c.stream;
    p.out_type = out_type(out);
    p.out = out.data_ptr();
    STD_CUDA_CHECK(cuda::program(p, here.stream()));
  }

  static std::optional<Tensor> product(Crossbar&, const Tensor&, const std::optional<Tensor>&, const aten::Convolution&, bool) {
    return std::nullopt;
  }
};

Tensor quantize(Tensor weight, Tensor step, int64_t weight_bits) {
  check(weight.scalar_type() == ScalarType::Float, "quantize", "weight", "must be float32", "another dtype");
  check(weight_bits >= 1 && weight_bits <= 16, "quantize", "weight_bits", "must be in 1..16", weight_bits);
  check(step.scalar_type() == ScalarType::Float && step.numel() == 1, "quantize", "step", "must be one float32", step.sizes());
  check(weight.is_cuda(), "quantize", "weight", "must be on CUDA like the step", "another device");
  check_beside("quantize", "step", step, weight);
  const OnDevice here(weight);
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor codes = aten::empty(sizes_of(weight), weight_bits <= 15 ? ScalarType::Short : ScalarType::Int, weight);
  STD_CUDA_CHECK(cuda::quantize(floats(dense), dense.numel(), floats(step), (int)weight_bits, codes.data_ptr(), here.stream()));
  return codes;
}

using CudaOperators = Operators<Cuda>;

}  // namespace
}  // namespace nft

STABLE_TORCH_LIBRARY_IMPL(nft_ext, CUDA, m) {
  m.impl("weight_step", TORCH_BOX(&nft::weight_step));
  m.impl("quantize", TORCH_BOX(&nft::quantize));
  m.impl("program", TORCH_BOX(&nft::CudaOperators::program));
  m.impl("noisy_linear", TORCH_BOX(&nft::CudaOperators::linear));
  m.impl("noisy_linear_backward", TORCH_BOX(&nft::CudaOperators::linear_backward));
  m.impl("noisy_conv2d", TORCH_BOX(&nft::CudaOperators::conv2d));
  m.impl("noisy_conv2d_backward", TORCH_BOX(&nft::CudaOperators::conv2d_backward));
}
