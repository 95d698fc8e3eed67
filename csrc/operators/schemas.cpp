// The schema of every operator. The backends (cpu/torch/operators_cpu.cpp, cuda/torch/operators_cuda.cpp) implement
// them; Python adds fake kernels and gradients.
//
// Shared arguments
//   weight  [*]            master weights in float32, bfloat16 or float16; their noise is that of the float32 values
//   codes   [*] or None    from `quantize`, of the present weight; None: the operator quantizes
//   step    [*] or None    float32, from `weight_step`; None: the operator finds the steps, from all weights
//   table   [T]            float32 device table, see core/conductance.h
//   key     [S, 2]         int64 rows (seed, draw + domain * 2^32), one per chip
//   stream                 32-bit stream of the layer
//   spec    [8]            weight_bits, device_bits, path (0 off, 1 fast, 2 per device),
//                          mapping (0 sign, 1 differential), then a scaling
//   scaling [4] or empty   which weights share a step. The stored weight is viewed as [E, K1, O, K2]: O is dimension
//                          output_dim, K2 the dimensions after it, E * K1 those before it (core/scaling.h).
//                          sharing     0: all share one step [] (also where a scaling is empty); 1: a step per group
//                                      [E]; 2: per output [E, O]; 3: per tile of an output [E, O, T]
//                          tile_rows   inputs per tile; 0 unless sharing is 3
//                          output_dim
//                          groups      E; 0: the size of dimension 0 (one crossbar per expert)
//   wanted                 gradients to compute: bit 0 for x, 1 for the weight, 2 for the bias; others come back empty
//   shared                 true: all S chips see the same x; false: x is chip-major, dim 0 = S * B
//
// The operators named _fused are for inference: relu((W_p x + bias) * scale + shift + residual)
//   scale, shift  [out]    float32, or None
//   residual               the result's shape and dtype, or None
//
// The operators named _many take lists with one entry per layer, and specs [8 L]
//   steps                  may be empty: the operator finds them
//   scales  [out] each     float32, multiplies each output's weights; or none. Only for weights stored channels last
//
// noisy_cascade runs the _fused operators on layers that feed each other, without gradients, on the CPU
//   biases, scales, shifts [out] each, or None
//   wiring  [10 L]         per layer: x and residual (-1: none), relu, stride, padding, dilation, groups (ignored for
//                          a linear layer). Values are numbered: the inputs first, then the layers' results. Each x
//                          is chip-major
//   kept                   the values to return: numbers of layers' results in ascending order
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(nft_ext, m) {
  m.def("weight_step(Tensor weight, int weight_bits, int[] scaling=[]) -> Tensor");
  m.def("weight_step_many(Tensor[] weights, int[] weight_bits) -> Tensor");
  m.def("quantize(Tensor weight, Tensor step, int weight_bits, int[] scaling=[]) -> Tensor");
  m.def(
      "program(Tensor weight, Tensor? codes, Tensor? step, Tensor table, Tensor key, int stream, int[] spec, "
      "ScalarType dtype) -> Tensor");
  m.def(
      "program_many(Tensor[] weights, Tensor?[] codes, Tensor[] steps, Tensor[] tables, Tensor key, int[] streams, "
      "int[] specs, Tensor[] scales, ScalarType dtype, bool channels_last=False) -> Tensor[]");
  m.def("epilogue_(Tensor(a!) y, Tensor? scale, Tensor? shift, Tensor? residual, bool relu) -> ()");
  m.def(
      "noisy_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, Tensor key, "
      "int stream, int[] spec, bool shared) -> Tensor");
  m.def(
      "noisy_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? codes, Tensor? step, Tensor table, Tensor "
      "key, "
      "int stream, int[] spec, bool shared, int wanted) -> (Tensor, Tensor, Tensor)");
  m.def(
      "noisy_linear_fused(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, Tensor "
      "key, "
      "int stream, int[] spec, bool shared, Tensor? scale, Tensor? shift, Tensor? residual, bool relu) -> Tensor");
  m.def(
      "noisy_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, Tensor key, "
      "int stream, int[] spec, int[] stride, int[] padding, int[] dilation, int groups, bool shared) -> Tensor");
  m.def(
      "noisy_conv2d_fused(Tensor x, Tensor weight, Tensor? bias, Tensor? codes, Tensor? step, Tensor table, Tensor "
      "key, "
      "int stream, int[] spec, int[] stride, int[] padding, int[] dilation, int groups, bool shared, Tensor? scale, "
      "Tensor? shift, Tensor? residual, bool relu) -> Tensor");
  m.def(
      "noisy_cascade(Tensor[] inputs, Tensor[] weights, Tensor?[] biases, Tensor[] tables, "
      "Tensor[] keys, int[] streams, int[] specs, Tensor?[] scales, Tensor?[] shifts, int[] wiring, int[] kept) -> "
      "Tensor[]");
  m.def(
      "noisy_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor? codes, Tensor? step, Tensor table, Tensor "
      "key, "
      "int stream, int[] spec, int[] stride, int[] padding, int[] dilation, int groups, bool shared, int wanted) -> "
      "(Tensor, Tensor, Tensor)");
  // aten's convolution_backward with the same bits every time; Python implements it.
  m.def(
      "convolution_backward(Tensor grad, Tensor x, Tensor weight, int[]? bias_sizes, int[] stride, int[] padding, "
      "int[] dilation, bool transposed, int[] output_padding, int groups, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
}
