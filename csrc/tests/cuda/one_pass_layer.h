// A layer's weights and noise for the tests of the one-pass
// kernels, and one run of a kernel's tile loop over all its tiles.
#pragma once

#include <math.h>

#include <memory>
#include <vector>

#include "tests/cuda/warps.h"

namespace nft_test {

using nft::cuda::OnePassProduct;

constexpr OutType kTypes[] = {OutType::kFloat32, OutType::kBFloat16, OutType::kFloat16};
constexpr double kRounding[] = {0x1p-22, 0x1p-8, 0x1p-10};  // of a stored result
constexpr int64_t kKeys[3][2] = {{7, 0}, {-5, (int64_t(1) << 32) | 0xfffffffe}, {int64_t(1) << 40, 3}};

struct Noise {
  bool codes = false, constant = false, limits = false;
  int path = kPathFast, mapping = 0, weight_bits = 8;
  int64_t chips = 2;
  float step = 1.0f / 200;
  int parts = 1;  // that a tile is split into, about
};

inline std::vector<float> table_of(const Noise& o) {
  const int levels = 1 << (o.path == kPathDevice ? 2 : o.weight_bits);
  std::vector<float> t((size_t)(2 * levels));
  for (int i = 0; i < levels; ++i) {
    t[(size_t)i] = o.constant ? (float)i : i * 0.96f + 0.05f;
    t[(size_t)(levels + i)] = o.constant ? 0.3f : 0.2f + 0.1f * (float)(i % 5);
  }
  if (o.limits)
    t.insert(t.end(), {1.0f, 0.0f, 3.0f, 0.1f, 0.2f, 0.4772499f});
  else
    t.insert(t.end(), {INFINITY, -INFINITY, INFINITY, 0, 0, 0});
  return t;
}

// n weights and all that programs them; `program` points into it.
struct Layer {
  float step;
  std::vector<float> table, weight;
  std::vector<int16_t> short_codes;
  std::vector<int32_t> codes;
  nft::cuda::Program program = {};

  Layer(const Noise& o, int64_t n, Words& words) : step(o.step), table(table_of(o)), weight((size_t)n) {
    for (float& w : weight) w = words.signed_unit();
    for (float w : weight) {
      codes.push_back(step > 0 ? pack_code(code_of(w, step, from_int((1 << o.weight_bits) - 1)), sign_of(w)) : 0);
      short_codes.push_back((int16_t)codes.back());
    }
    nft::cuda::Program& p = program;
    p.n = n;
    p.weight_bits = o.weight_bits, p.device_bits = 2, p.path = o.path, p.mapping = o.mapping;
    p.keys = &kKeys[0][0], p.chips = o.chips, p.stream = 0x9abcdef0u;
    p.code_bytes = o.weight_bits <= 15 ? 2 : 4;
    p.step = &step;
    p.table = table.data();
    if (o.codes)
      p.codes = p.code_bytes == 2 ? (const void*)short_codes.data() : codes.data();
    else
      p.weight = weight.data();
  }
  Layer(const Layer&) = delete;
};

// What cuda::program writes, [chips, n], as numbers.
template <int kPath, OutType kX>
std::vector<double> programmed_weights(nft::cuda::Program p) {
  std::vector<typename Stored<kX>::Type> out((size_t)(p.n * p.chips));
  p.out = out.data();
  for (int64_t quad = 0; quad < quads_of(p.n); ++quad)
    program_quad<kPath, kX>(p, {p.table, table_levels(p), false}, quad, 0, 1);
  std::vector<double> numbers;
  for (auto v : out) numbers.push_back(loaded<kX>(v));
  return numbers;
}

template <OutType kX>
std::vector<double> programmed_weights(const nft::cuda::Program& p) {
  if (p.path == kPathFast) return programmed_weights<kPathFast, kX>(p);
  return p.path == kPathDevice ? programmed_weights<kPathDevice, kX>(p) : programmed_weights<kPathOff, kX>(p);
}

inline std::vector<double> programmed_weights(const nft::cuda::Program& p, OutType type) {
  if (type == OutType::kFloat32) return programmed_weights<OutType::kFloat32>(p);
  return type == OutType::kBFloat16 ? programmed_weights<OutType::kBFloat16>(p)
                                    : programmed_weights<OutType::kFloat16>(p);
}

// Calls run(tile type, noise path) with those of a case, as values of types Tile<..> and std::integral_constant.
template <OutType kX, bool kWide, class Run>
void with_path(int path, const Run& run) {
  typedef Tile<kX, kWide> T;
  if (path == kPathOff) run(T(), std::integral_constant<int, kPathOff>());
  if (path == kPathFast) run(T(), std::integral_constant<int, kPathFast>());
  if (path == kPathDevice) run(T(), std::integral_constant<int, kPathDevice>());
}

template <class Run>
void with_tile(OutType x, bool wide, int path, const Run& run) {
  if (x == OutType::kFloat32)
    wide ? with_path<OutType::kFloat32, true>(path, run) : with_path<OutType::kFloat32, false>(path, run);
  if (x == OutType::kBFloat16)
    wide ? with_path<OutType::kBFloat16, true>(path, run) : with_path<OutType::kBFloat16, false>(path, run);
  if (x == OutType::kFloat16)
    wide ? with_path<OutType::kFloat16, true>(path, run) : with_path<OutType::kFloat16, false>(path, run);
}

// All tiles of a product, in turn, their steps split among
// about `parts` thread blocks and the sums added up afterwards.
template <class T, int kPath, class S>
void run_tiles(const OnePassProduct& f, const S& sizes, bool constant, bool reversed, int parts) {
  const Table table = {f.program.table, table_levels(f.program), constant};
  const Tiling tiling = tiling_of(f, sizes, T::kRows, T::kColumns);
  std::unique_ptr<Shared<T>> shared(new Shared<T>);
  memset((void*)shared.get(), 0xff, sizeof *shared);  // NaN: what a thread reads, another must have written
  Team<T> team(reversed);
  const int steps = steps_of<T>(sizes), each = (steps + parts - 1) / parts;
  const nft::cuda::Split split = {each > 0 ? (steps + each - 1) / each : 1, each};
  std::vector<float> memory;
  float* sums = nullptr;
  if (split.parts > 1) {
    memory.assign((size_t)(tiling.count * split.parts * sums_of_tile<T>() + 12), NAN);
    sums = (float*)(((uintptr_t)memory.data() + 31) / 16 * 16);
  }
  for (int64_t tile = 0; tile < tiling.count; ++tile)
    for (int part = 0; part < split.parts; ++part)
      multiply_tile<T, kPath>(f, table, sizes, place_of(f, tiling, tile), steps_of_part(split, part, steps),
                              sums ? sums + place_of_sums<T>(split, tile, part, 0, 0) : nullptr, *shared, team);
  if (!sums) return;
  expect(isnan(sums[-1]) && isnan(sums[memory.size() - 12]), "parts' sums lie in their memory");
  typedef Tile<OutType::kFloat32, (T::kColumns > 32)>
      Adder;  // as in csrc/cuda/one_pass/product.cu, whatever the tile's numbers
  for (int64_t at = 0; at < tiling.count * sums_of_tile<T>() / 4; ++at) {
    if (f.y_type == OutType::kBFloat16)
      add_parts<Adder, OutType::kBFloat16>(f, sizes, tiling, split, sums, at);
    else if (f.y_type == OutType::kFloat16)
      add_parts<Adder, OutType::kFloat16>(f, sizes, tiling, split, sums, at);
    else
      add_parts<Adder, OutType::kFloat32>(f, sizes, tiling, split, sums, at);
  }
}

// Whether nothing but a result, which the caller has overwritten with poison, was written.
inline bool is_poison(const Memory& y) {
  bool untouched = true;
  for (uint64_t v : y.words) untouched = untouched && v == ~uint64_t(0);
  return untouched;
}

struct Sum {
  double value, magnitude;
  void add(double product) {
    value += product;
    magnitude += fabs(product);
  }
};

// One result without its epilogue; w [chips, n] are the programmed weights.
inline Sum definition(const OnePassProduct& f, const std::vector<double>& w, int64_t chip, int64_t image, int r, int oy,
                      int ox) {
  const int channels = f.channels / f.groups, first = r / (f.rows / f.groups) * channels;
  Sum sum = {0, 0};
  for (int c = 0; c < channels; ++c)
    for (int ky = 0; ky < f.kernel[0]; ++ky)
      for (int kx = 0; kx < f.kernel[1]; ++kx) {
        const int y = oy * f.stride[0] - f.padding[0] + ky * f.dilation[0];
        const int x = ox * f.stride[1] - f.padding[1] + kx * f.dilation[1];
        const bool inside = y >= 0 && y < f.height && x >= 0 && x < f.width;
        const nft::cuda::Strides& t = f.x_strides;
        const int64_t at = chip * t.chip + image * t.image + (first + c) * t.channel + y * t.y + x * t.x;
        const int64_t weight = (((int64_t)r * channels + c) * f.kernel[0] + ky) * f.kernel[1] + kx;
        const double product = w[(size_t)(chip * f.program.n + weight)] *
                               (inside ? number_at(f.x_type, (const char*)f.x + at * (int64_t)size_of(f.x_type)) : 0.0);
        sum.add(product);
      }
  return sum;
}

}  // namespace nft_test
