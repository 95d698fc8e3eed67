// Known answers of the 8-bit products (int8_known_answers.txt), which the operators on the CPU give too
// (python_tests/test_int8_known.py): the CUDA kernels' way from weights, table, key and input to results, on the host, must
// give every bit of them, whatever the tile, the split and where the weights come from.
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../cuda/images.h"
#include "fused_layer.h"

using namespace nft::generic;
using nft::cuda::Fused;
using nft::cuda::OutType;
using nft_test::expect;

namespace {

float value(uint32_t i) { return (float)(i * 2654435761u >> 8) * 0x1p-23f - 1.0f; }

std::vector<float> values(int64_t n, uint32_t first) {
  std::vector<float> list;
  for (int64_t i = 0; i < n; ++i) list.push_back(value(first + (uint32_t)i));
  return list;
}

template <class F>
void each_word(const std::string& line, const F& f) {
  std::istringstream words(line);
  words.ignore(line.size(), ' ');
  for (std::string word; words >> word;) f((uint32_t)std::stoul(word, nullptr, 16));
}

struct Case {
  std::string name;
  int64_t images;
  int chips;
  Fused f = {};
  nft::cuda::Program p = {};
  std::vector<float> table;
  std::vector<uint32_t> y;
};

std::vector<Case> read(const char* path) {
  std::vector<Case> cases;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("case ", 0) == 0) {
      Case c;
      std::istringstream in(line.substr(5));
      Fused& f = c.f;
      in >> c.name >> c.images >> f.channels >> f.height >> f.width >> f.rows >> f.groups >> f.kernel[0] >> f.kernel[1] >> f.stride[0] >>
          f.stride[1] >> f.padding[0] >> f.padding[1] >> f.dilation[0] >> f.dilation[1] >> c.chips >> c.p.weight_bits >>
          c.p.device_bits >> c.p.path >> c.p.mapping;
      expect(!in.fail(), "line %s", line.c_str());
      cases.push_back(c);
    }
    if (line.rfind("table", 0) == 0) each_word(line, [&](uint32_t word) { cases.back().table.push_back(float_of(word)); });
    if (line.rfind("y", 0) == 0) each_word(line, [&](uint32_t word) { cases.back().y.push_back(word); });
  }
  return cases;
}

// What measure_images and round_images do on a device.
void round_input(const nft::cuda::Images& m, const nft::cuda::Program& p, float* unit) {
  float reach = 0;
  for (int q = 0; q < 1 << p.weight_bits; ++q) reach = most(reach, reach_of_code(devices_of(p), q));
  *unit = weight_unit(*p.step, reach_of_all(devices_of(p), reach));
  for (int64_t image = 0; image < m.images; ++image) {
    uint32_t largest = 0;
    for (int64_t quad = 0; quad < blocks_of(m.size); ++quad) {
      const uint32_t here = largest_of_four<OutType::kFloat32>(m, image, quad);
      largest = here > largest ? here : largest;
    }
    m.largest[image] = float_of(largest);
    for (int64_t quad = 0; quad < blocks_of(m.size); ++quad) round_four<OutType::kFloat32>(m, image, quad);
  }
}

template <int kPath>
void store_weights(const nft::cuda::Program& p) {
  for (int64_t block = 0; block < blocks_of(p.n); ++block)
    program_block<kPath, OutType::kInt8>(p, {p.table, table_levels(p), false}, block, 0, 1);
}

void check(Case& c) {
  Fused& f = c.f;
  for (int i = 0; i < 2; ++i)
    f.out[i] = ((i ? f.width : f.height) + 2 * f.padding[i] - f.dilation[i] * (f.kernel[i] - 1) - 1) / f.stride[i] + 1;
  f.images = c.images;
  const int64_t size = (int64_t)f.channels * f.height * f.width, n = (int64_t)f.rows * (f.channels / f.groups) * f.kernel[0] * f.kernel[1];
  const std::vector<float> weight = values(n, 0), bias = values(f.rows, 2000);
  std::vector<float> x = values(c.images * size, 1000), largest((size_t)c.images), y(c.y.size());
  for (int64_t i = 0; i < c.images * size; ++i) x[(size_t)i] *= (float)(1 << i / size);  // images of different sizes
  std::vector<int8_t> rounded(x.size()), stored((size_t)(n * c.chips));
  std::vector<int64_t> keys;
  for (int64_t chip = 0; chip < c.chips; ++chip) keys.insert(keys.end(), {5, chip});
  uint32_t most = 0;
  for (int64_t block = 0; block < blocks_of(n); ++block) most = std::max(most, largest_of_block(weight.data(), n, block));
  const float step = step_or_nan(most, c.p.weight_bits);
  float unit = NAN;
  c.p.weight = weight.data(), c.p.n = n, c.p.step = &step, c.p.table = c.table.data(), c.p.keys = keys.data(), c.p.chips = c.chips;
  c.p.stream = 7, c.p.scale = &unit;
  round_input({x.data(), OutType::kFloat32, c.images, size, largest.data(), rounded.data()}, c.p, &unit);
  f.program = c.p;
  f.x_type = OutType::kInt8, f.x = rounded.data(), f.x_strides = {0, size, (int64_t)f.height * f.width, f.width, 1};
  f.x_largest = largest.data();
  const int64_t pixels = (int64_t)f.out[0] * f.out[1];
  f.y_type = OutType::kFloat32, f.y = y.data(), f.y_strides = {c.images * f.rows * pixels, f.rows * pixels, pixels, f.out[1], 1};
  f.epilogue.bias = bias.data();
  expect((int64_t)y.size() == c.chips * c.images * f.rows * pixels, "%s: %d results", c.name.c_str(), (int)y.size());
  nft::cuda::Program storing = c.p;
  storing.out = stored.data();
  if (c.p.path == kPathFast) store_weights<kPathFast>(storing);
  else if (c.p.path == kPathDevice) store_weights<kPathDevice>(storing);
  else store_weights<kPathOff>(storing);
  for (int n = 0; n < 2 * 2 * 2; ++n) {
    const bool wide = n % 2, reading = n / 2 % 2;
    f.program.out = reading ? stored.data() : nullptr;
    std::fill(y.begin(), y.end(), NAN);
    nft_test::with_tile(f.x_type, wide, reading ? (int)kPathStored : c.p.path, [&](auto tile, auto path) {
      nft_test::run_tiles<decltype(tile), path>(f, sizes_of(f), false, false, n < 4 ? 1 : 3);
    });
    for (size_t i = 0; i < y.size(); ++i)
      expect(bits_of(y[i]) == c.y[i], "%s, %s tile, weights %s: result %d is %08x, not %08x", c.name.c_str(), wide ? "wide" : "narrow",
             reading ? "stored" : "made", (int)i, bits_of(y[i]), c.y[i]);
  }
}

}  // namespace

int main() {
  std::vector<Case> cases = read(NFT_TEST_DATA "/int8_known_answers.txt");
  expect(cases.size() >= 5, "%d cases", (int)cases.size());
  for (Case& c : cases) check(c);
  return nft_test::finish("cuda_int8_known");
}
