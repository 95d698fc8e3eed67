// nft_ext._core: build facts, and the core functions on NumPy arrays. No torch in here: it serves the noise's
// specification tests, and tools that only want numbers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/conductance.h"
#include "cpu/sampler/sampler.h"

namespace py = pybind11;
using nft::Kernels;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

const Kernels& pick(const std::string& isa) {
  return isa.empty() ? nft::kernels() : nft::kernels_named(isa.c_str(), "isa");
}

std::vector<std::string> instruction_sets() {
  int count = 0;
  const Kernels* const* list = nft::available_kernels(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.push_back(list[i]->name);
  return names;
}

template <class Value>
void check(bool holds, const char* argument, const char* rule, const Value& value) {
  if (holds) return;
  std::ostringstream out;
  out << argument << ": " << rule << "; got " << value;
  throw std::invalid_argument(out.str());
}

std::string shape_of(const py::array& array) {
  std::string shape;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) shape += (i ? ", " : "") + std::to_string(array.shape(i));
  return "[" + shape + "]";
}

void check_weight_bits(int weight_bits) {
  check(weight_bits >= 1 && weight_bits <= 16, "weight_bits", "must be in 1..16", weight_bits);
}

void check_step(float step) {
  check(step >= 0 && step <= std::numeric_limits<float>::max(), "step", "must be a finite number >= 0", step);
}

// counters [n, 4], key [2] -> words [n, 4]
Array<uint32_t> philox(Array<uint32_t> counters, Array<uint32_t> key, const std::string& isa) {
  check(counters.ndim() == 2 && counters.shape(1) == 4, "counters", "must be uint32 [n, 4]", shape_of(counters));
  check(key.size() == 2, "key", "must be uint32 [2]", shape_of(key));
  Array<uint32_t> words({counters.shape(0), (py::ssize_t)4});
  pick(isa).philox(counters.data(), key.data(), counters.shape(0), words.mutable_data());
  return words;
}

// Standard normals of elements 0 .. n-1: key row [2], stream, slice -> float32 [n]
Array<float> normals(Array<int64_t> key, uint32_t stream, uint32_t slice, int64_t n, const std::string& isa) {
  check(key.size() == 2, "key", "must be one int64 row (seed, draw)", shape_of(key));
  check(n >= 0, "n", "must be >= 0", n);
  Array<float> z(n);
  pick(isa).normals(key.data(), stream, slice, n, z.mutable_data());
  return z;
}

float step(Array<float> weight, int weight_bits) {
  check_weight_bits(weight_bits);
  const Kernels& k = nft::kernels();
  const uint32_t bits = k.abs_max_bits(weight.data(), weight.size());
  float abs_max;
  memcpy(&abs_max, &bits, sizeof abs_max);
  check(bits < 0x7f800000u, "weight", "must be finite (no NaN, no infinity)", abs_max);
  return k.step(abs_max, weight_bits);
}

// weight [n] -> packed codes [n] (int32 whatever the width)
Array<int32_t> quantize(Array<float> weight, float step, int weight_bits, const std::string& isa) {
  check_weight_bits(weight_bits);
  check_step(step);
  Array<int32_t> codes(weight.size());
  pick(isa).quantize(weight.data(), weight.size(), step, weight_bits, codes.mutable_data(), 4);
  return codes;
}

// weight [n], table, keys [S, 2] -> programmed weights float32 [S, n]
Array<float> program(Array<float> weight, float step, Array<float> table, Array<int64_t> keys, uint32_t stream,
                     int weight_bits, int device_bits, int path, int mapping, const std::string& isa, int threads) {
  constexpr int kMostThreads = 1024;
  check(keys.ndim() == 2 && keys.shape(1) == 2, "keys", "must be int64 [S, 2]", shape_of(keys));
  check(keys.shape(0) <= std::numeric_limits<int>::max(), "keys", "must have fewer than 2^31 chips", keys.shape(0));
  check_weight_bits(weight_bits);
  check_step(step);
  check(device_bits >= 1 && weight_bits % device_bits == 0, "device_bits", "must divide weight_bits", device_bits);
  check(path >= 0 && path <= 2, "path", "must be 0 (off), 1 (fast) or 2 (per device)", path);
  check(mapping == 0 || mapping == 1, "mapping", "must be 0 (sign) or 1 (differential)", mapping);
  const int64_t expected =
      path == 2 ? (int64_t(2) << device_bits) + nft::generic::kLimitCount : int64_t(2) << weight_bits;
  check(table.size() == expected, "table", ("must have " + std::to_string(expected) + " entries").c_str(),
        table.size());
  check(threads >= 1 && threads <= kMostThreads, "threads", "must be in 1..1024", threads);
  Array<float> out({keys.shape(0), (py::ssize_t)weight.size()});
  nft::Program p{};
  p.weight = weight.data();
  p.n = weight.size();
  p.step = step;
  p.weight_bits = weight_bits;
  p.device_bits = device_bits;
  p.path = path;
  p.mapping = mapping;
  p.table = table.data();
  p.plain_means = p.constant_table = false;
  p.keys = keys.data();
  p.chips = (int)keys.shape(0);
  p.stream = stream;
  p.out_type = nft::OutType::kFloat32;
  p.out = out.mutable_data();
  const Kernels& k = pick(isa);
  py::gil_scoped_release release;
  const int64_t chunks = nft::chunks_of(p.n), parts = std::max<int64_t>(1, std::min<int64_t>(threads, chunks));
  const auto part = [&](int64_t t) { k.program(p, chunks * t / parts, chunks * (t + 1) / parts); };
  std::vector<std::thread> workers;
  workers.reserve((size_t)parts);
  int64_t started = 1;
  try {
    for (; started < parts; ++started) workers.emplace_back(part, started);
  } catch (const std::system_error&) {  // the machine has no more threads: this one does the rest
  }
  part(0);
  for (int64_t t = started; t < parts; ++t) part(t);
  for (auto& worker : workers) worker.join();
  return out;
}

py::dict build() {
  py::dict facts;
  facts["compiler"] = NFT_COMPILER;
  facts["cuda_architectures"] = NFT_CUDA_FACT;
  facts["cuda_off"] = NFT_CUDA_WHY_OFF;
  facts["instruction_sets"] = instruction_sets();
  return facts;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Build facts and the noise core on NumPy arrays; no torch. See docs/reference/noise.md.";
  m.def("build", &build, "Compiler, instruction sets this processor can run, CUDA architectures or why CUDA is off.");
  m.def(
      "isa", [] { return std::string(nft::kernels().name); },
      "The instruction set in use (NFT_EXT_CPU_ISA overrides).");
  m.def("philox", &philox, py::arg("counters"), py::arg("key"), py::arg("isa") = "",
        "Philox4x32-10: counters uint32 [n, 4], key uint32 [2] -> words uint32 [n, 4].");
  m.def("normals", &normals, py::arg("key"), py::arg("stream"), py::arg("slice"), py::arg("n"), py::arg("isa") = "",
        "Standard normals float32 [n] of elements 0..n-1 under one key row int64 [2].");
  m.def("step", &step, py::arg("weight"), py::arg("weight_bits"), "Step s = fl(max|W| / (2^M - 1)), Eq. 4.");
  m.def("quantize", &quantize, py::arg("weight"), py::arg("step"), py::arg("weight_bits"), py::arg("isa") = "",
        "Packed codes int32 [n]: q, or ~q for a negative weight.");
  m.def("program", &program, py::arg("weight"), py::arg("step"), py::arg("table"), py::arg("keys"), py::arg("stream"),
        py::arg("weight_bits"), py::arg("device_bits"), py::arg("path"), py::arg("mapping") = 0, py::arg("isa") = "",
        py::arg("threads") = 1, "Programmed weights float32 [S, n] of weight [n] for keys int64 [S, 2], Eq. 5.");
}
