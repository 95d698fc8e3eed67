// All layers of a model in one launch (csrc/cuda/sampler/layer_batch.h): the grid is played
// through on the host with the functions that the kernels run. Every quad of every layer is
// in exactly one share, and the results are the CPU's, layer by layer, bit for bit.
#include <math.h>

#include <memory>
#include <string>
#include <vector>

#include "cuda/sampler/layer_batch.h"
#include "tests/check.h"

using namespace nft::generic;
using nft::cuda::Batch;
using nft::cuda::Kind;
using nft::cuda::kMostLayers;
using nft::cuda::OutType;
using nft_test::expect;

namespace {

constexpr int kThreads = 256;
constexpr int kChips = 3;
constexpr int64_t kKeys[kChips][2] = {{7, 0}, {-5, (int64_t(1) << 32) | 0xfffffffe}, {int64_t(1) << 40, 3}};

// ---- shares

nft::cuda::Program sized(int64_t n) {
  nft::cuda::Program p{};
  p.n = n;
  return p;
}

// Shares follow each other, differ by one strip at most, start
// in the right layer, and cut each layer into consecutive quads.
void expect_shares(const std::vector<int64_t>& sizes, int64_t parts) {
  Batch<kMostLayers> batch;
  batch.count = 0;
  for (int64_t n : sizes) append(batch, sized(n));
  set_shares(batch, parts);
  int64_t strip = 0;
  std::vector<int64_t> done(sizes.size(), 0);
  bool ok = true;
  for (int64_t part = 0; part < parts; ++part) {
    const Range share = share_of(batch, part);
    const int64_t length = share.end - share.begin;
    ok = ok && share.begin == strip && length - strips_of(batch) / parts >= 0 && length - strips_of(batch) / parts <= 1;
    strip = share.end;
    int l = layer_of(batch, share.begin);
    if (length > 0) ok = ok && (l == 0 || batch.layer[l - 1].end <= share.begin) && share.begin < batch.layer[l].end;
    for (; reaches(batch, share, l); ++l) {
      const Range quads = quads_in(batch, share, l);
      ok = ok && quads.begin == done[(size_t)l] && quads.begin % kStrip == 0;
      done[(size_t)l] = quads.end;
    }
  }
  ok = ok && strip == strips_of(batch);
  for (size_t l = 0; l < sizes.size(); ++l) ok = ok && done[l] == quads_of(sizes[l]);
  expect(ok, "%zu layers, the last of %ld weights, to %ld thread blocks", sizes.size(), (long)sizes.back(),
         (long)parts);
}

// All lists of up to three layers of these sizes, a full batch, and layers of more than 2^31 weights.
void test_shares() {
  const std::vector<int64_t> sizes = {0, 1, 3, 4, 5, 127, 128, 129, 1000, 4096};
  std::vector<std::vector<int64_t>> lists = {{}};
  for (size_t i = 0; i < lists.size() && lists[i].size() < 3; ++i)
    for (int64_t n : sizes) {
      lists.push_back(lists[i]);
      lists.back().push_back(n);
    }
  nft_test::Words words(3);
  std::vector<int64_t> full;
  for (int l = 0; l < kMostLayers; ++l) full.push_back(words.next() % (l % 3 ? 5000 : 40));
  lists.push_back(full);
  lists.push_back({int64_t(1) << 33, 5, (int64_t(1) << 40) + 3});
  for (size_t i = 1; i < lists.size(); ++i)
    for (int64_t parts : {1, 2, 3, 7, 132, 1056}) expect_shares(lists[i], parts);
}

// ---- programs

struct Layer {
  int weight_bits, device_bits, path, mapping;
  OutType out_type;
  bool cached;  // codes are given
  std::vector<float> weight, table;
  float step;
  std::vector<int32_t> codes;
  std::vector<char> out;

  int64_t n() const { return (int64_t)weight.size(); }
  size_t width() const { return out_type == OutType::kFloat32 ? 4 : 2; }
};

const nft::Kernels& cpu() { return nft::kernels(); }

std::vector<float> table_of(int path, int weight_bits, int device_bits, int seed) {
  if (path == kPathOff) return {};
  const int levels = 1 << (path == kPathFast ? weight_bits : device_bits);
  std::vector<float> table;
  for (int i = 0; i < levels; ++i) table.push_back((float)i * 0.97f + 0.01f * (float)seed);
  for (int i = 0; i < levels; ++i) table.push_back(0.1f + 0.3f * (float)((i + seed) % 5));
  const std::vector<float> limits[] = {{INFINITY, -INFINITY, INFINITY, 0, 0, 0},
                                       {0.5f, 0, 2.5f, 0.1f, 0.3f, 0.4772499f}};
  if (path == kPathDevice) table.insert(table.end(), limits[seed % 2].begin(), limits[seed % 2].end());
  return table;
}

// Layers of many sizes, devices, sources and output types; some all zero. Layers of the same kind lie far apart.
std::vector<std::unique_ptr<Layer>> layers() {
  const int64_t sizes[] = {1000, 0, 1, 3, 4, 5, 129, 2311};
  const int bits[][2] = {{8, 2}, {6, 3}, {16, 4}, {8, 8}, {15, 5}};
  std::vector<std::unique_ptr<Layer>> list;
  nft_test::Words words(11);
  for (int i = 0; i < 480; ++i) {
    std::unique_ptr<Layer> layer(new Layer{});
    Layer& l = *layer;
    l.path = i % 3;
    l.out_type = (OutType)(i / 3 % 3);
    l.weight_bits = bits[i % 5][0], l.device_bits = bits[i % 5][1];
    l.mapping = l.path == kPathDevice && i % 2;
    l.cached = i / 12 % 2;
    l.weight.resize((size_t)sizes[(i / 3 + i / 24) % 8]);
    for (float& w : l.weight) w = i % 50 == 49 ? 0.0f : words.signed_unit() * (float)(1 + i % 7);
    l.table = table_of(l.path, l.weight_bits, l.device_bits, i % 9);
    const uint32_t largest = cpu().abs_max_bits(l.weight.data(), l.n());
    l.step = cpu().step(float_of(largest), l.weight_bits);
    l.codes.resize(l.weight.size());
    cpu().quantize(l.weight.data(), l.n(), l.step, l.weight_bits, l.codes.data(), l.weight_bits <= 15 ? 2 : 4);
    l.out.assign((size_t)kChips * l.weight.size() * l.width() + 16, 0x55);
    list.push_back(std::move(layer));
  }
  return list;
}

nft::cuda::Program program_of(Layer& l, uint32_t stream) {
  nft::cuda::Program p{};
  p.weight = l.cached ? nullptr : l.weight.data();
  p.codes = l.cached ? l.codes.data() : nullptr;
  p.code_bytes = l.weight_bits <= 15 ? 2 : 4;
  p.n = l.n();
  p.step = &l.step;
  p.weight_bits = l.weight_bits, p.device_bits = l.device_bits;
  p.path = l.path, p.mapping = l.mapping;
  p.table = l.table.data();
  p.keys = &kKeys[0][0];
  p.chips = kChips;
  p.stream = stream;
  p.out_type = l.out_type;
  p.out = l.out.data();
  return p;
}

// A grid of `parts` thread blocks for the weights and two rows for the chips.
template <int kPath, OutType kOut>
void play(Batch<kMostLayers>& batch, int parts) {
  set_shares(batch, parts);
  for (int part = 0; part < parts; ++part)
    for (int row = 0; row < 2; ++row) {
      const Range share = share_of(batch, part);
      for (int l = layer_of(batch, share.begin); reaches(batch, share, l); ++l) {
        const nft::cuda::Program p = program_in<kPath, kOut>(batch, l);
        const Range quads = quads_in(batch, share, l);
        for (int thread = 0; thread < kThreads; ++thread)
          for (int64_t quad = quads.begin + thread; quad < quads.end; quad += kThreads)
            program_quad<kPath, kOut>(p, {p.table, table_levels(p), false}, quad, row, 2);
      }
    }
}

template <int kPath>
void play(const Kind& kind, Batch<kMostLayers>& batch, int parts) {
  if (kind.out_type == OutType::kFloat32) play<kPath, OutType::kFloat32>(batch, parts);
  if (kind.out_type == OutType::kBFloat16) play<kPath, OutType::kBFloat16>(batch, parts);
  if (kind.out_type == OutType::kFloat16) play<kPath, OutType::kFloat16>(batch, parts);
}

// What the CPU programs: one layer by itself.
std::vector<float> expected(const Layer& l, uint32_t stream) {
  std::vector<float> out((size_t)kChips * l.weight.size());
  nft::Program p{};
  p.weight = l.weight.data();
  p.n = l.n();
  p.step = l.step;
  p.weight_bits = l.weight_bits, p.device_bits = l.device_bits;
  p.path = l.path, p.mapping = l.mapping;
  p.table = l.table.data();
  p.keys = &kKeys[0][0], p.chips = kChips, p.stream = stream;
  p.out_type = nft::OutType::kFloat32;
  p.out = out.data();
  cpu().program(p, 0, nft::chunks_of(l.n()));
  return out;
}

// The stored bytes of one weight.
std::string bytes_of(const Layer& l, float w) {
  char bytes[4] = {};
  const uint16_t half = l.out_type == OutType::kBFloat16 ? to_bfloat16(w) : to_float16(w);
  if (l.out_type == OutType::kFloat32) memcpy(bytes, &w, 4);
  if (l.width() == 2) memcpy(bytes, &half, 2);
  return std::string(bytes, l.width());
}

void test_programs(int parts) {
  const auto list = layers();
  std::vector<nft::cuda::Program> programs;
  for (size_t i = 0; i < list.size(); ++i) programs.push_back(program_of(*list[i], 77u * (uint32_t)i));
  int launches = 0, launched = 0;
  const int error =
      in_batches_per_kind(programs.data(), (int)programs.size(), [&](const Kind& kind, Batch<kMostLayers>& batch) {
        ++launches;
        launched += batch.count;
        int bytes = 0;
        for (const nft::cuda::Program& p : programs)
          if (p.n > 0 && kind_of(p) == kind && table_bytes(p) > bytes) bytes = table_bytes(p);
        expect(batch.table_bytes == bytes && (!kind.table_in_shared || bytes <= kSharedTableBytes), "largest table");
        if (kind.path == kPathOff) play<kPathOff>(kind, batch, parts);
        if (kind.path == kPathFast) play<kPathFast>(kind, batch, parts);
        if (kind.path == kPathDevice) play<kPathDevice>(kind, batch, parts);
        return 0;
      });
  for (const auto& l : list) launched -= l->n() > 0;
  expect(error == 0 && launched == 0, "%d layers launched too often", launched);
  // Off and per device one kind an output type; on the fast path large tables are another one.
  expect(launches == 3 * (1 + 2 + 1), "%d launches", launches);
  for (size_t i = 0; i < list.size(); ++i) {
    const Layer& l = *list[i];
    const std::vector<float> want = expected(l, 77u * (uint32_t)i);
    size_t wrong = 0;
    for (size_t k = 0; k < want.size(); ++k)
      wrong += bytes_of(l, want[k]) != std::string(l.out.data() + k * l.width(), l.width());
    expect(wrong == 0, "layer %zu, %d parts: %zu of %zu weights differ", i, parts, wrong, want.size());
    bool untouched = true;
    for (size_t k = want.size() * l.width(); k < l.out.size(); ++k) untouched = untouched && l.out[k] == 0x55;
    expect(untouched, "layer %zu: writes behind its end", i);
  }
}

// More layers of a kind than a launch holds; the first error ends the list.
void test_long_lists() {
  const std::vector<nft::cuda::Program> programs(150, sized(10));
  std::vector<int> counts;
  const auto launch = [&](const Kind&, Batch<kMostLayers>& batch) {
    counts.push_back(batch.count);
    return counts.size() == 4 ? 2 : 0;
  };
  expect(in_batches_per_kind(programs.data(), 150, launch) == 0 && counts == std::vector<int>({56, 56, 38}),
         "150 layers");
  expect(in_batches_per_kind(programs.data(), 150, launch) == 2 && counts.size() == 4, "an error ends the list");
  expect(in_batches_per_kind(programs.data(), 0, launch) == 0 && counts.size() == 4, "no layers, no launch");
}

// Steps of all layers: the maximum of the parts' maxima. A weight that is not finite makes only its
// own layer's step NaN.
void test_steps(int parts) {
  auto list = layers();
  std::vector<nft::cuda::Program> programs;
  for (int i = 0; i < kMostLayers; ++i) {
    Layer& l = *list[(size_t)i];
    if (i % 10 == 7 && l.n()) l.weight[(size_t)l.n() / 2] = i % 20 == 7 ? NAN : -INFINITY;
    programs.push_back(program_of(l, 0));
    programs.back().weight = l.weight.data();
    programs.back().codes = nullptr;
  }
  in_batches(
      programs.data(), kMostLayers, [](const nft::cuda::Program&) { return true; },
      [&](Batch<kMostLayers>& batch) {
        set_shares(batch, parts);
        std::vector<uint32_t> largest(kMostLayers, 0u);
        for (int part = 0; part < parts; ++part) {
          const Range share = share_of(batch, part);
          for (int l = layer_of(batch, share.begin); reaches(batch, share, l); ++l) {
            const Range quads = quads_in(batch, share, l);
            for (int64_t quad = quads.begin; quad < quads.end; ++quad) {
              const uint32_t one = abs_max_of_quad((const float*)batch.layer[l].source, batch.layer[l].n, quad);
              largest[(size_t)l] = one > largest[(size_t)l] ? one : largest[(size_t)l];
            }
          }
        }
        for (int l = 0; l < batch.count; ++l) {
          const float step = step_or_nan(largest[(size_t)l], batch.layer[l].weight_bits);
          const bool finite = l % 10 != 7 || list[(size_t)l]->n() == 0;
          expect(finite ? nft_test::same_bits(step, list[(size_t)l]->step) : isnan(step), "step of layer %d", l);
        }
        return 0;
      });
}

}  // namespace

int main() {
  test_shares();
  for (int parts : {1, 3, 40}) {
    test_programs(parts);
    test_steps(parts);
  }
  test_long_lists();
  return nft_test::exit_code("layer_batch");
}
