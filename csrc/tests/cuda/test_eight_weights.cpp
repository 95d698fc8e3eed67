// Eight weights at a time (csrc/cuda/sampler/eight_weights.h), and channels last (csrc/cuda/sampler/channels_last.h),
// played through on the host: the bits of four_weights.h, each in its place, once.
#include <math.h>

#include <vector>

#include "cuda/sampler/channels_last.h"
#include "tests/check.h"

using namespace nft::generic;
using nft::cuda::Batch;
using nft::cuda::OutType;
using nft_test::expect;

namespace {

constexpr int kChips = 3;
constexpr int64_t kKeys[kChips][2] = {{7, 0}, {-5, (int64_t(1) << 32) | 0xfffffffe}, {int64_t(1) << 40, 3}};

// Weights, their codes, and a table; in memory that starts at a multiple of 16 bytes.
struct Layer {
  Layer(int64_t n, int weight_bits, bool constant, bool cached) : n(n), bits(weight_bits), cached(cached) {
    nft_test::Words words((uint32_t)n + (uint32_t)weight_bits);
    weight.resize((size_t)n);
    float largest = 0;
    for (float& w : weight) {
      w = words.next() % 17 == 3 ? 0.0f : words.signed_unit();
      largest = fabsf(w) > largest ? fabsf(w) : largest;
    }
    step = step_of(largest, bits);
    wide.resize((size_t)n);
    narrow.resize((size_t)n);
    for (int64_t quad = 0; quad < quads_of(n); ++quad) {
      quantize_quad(weight.data(), n, step, bits, wide.data(), quad);
      if (bits <= 15) quantize_quad(weight.data(), n, step, bits, narrow.data(), quad);
    }
    const int levels = 1 << bits;
    for (int i = 0; i < levels; ++i) table.push_back(constant ? (float)i : (float)i * 0.96f + 0.05f);
    for (int i = 0; i < levels; ++i) table.push_back(constant ? 0.3f : 0.2f + 0.1f * (float)(i % 5));
    this->constant = constant;
  }

  nft::cuda::Program program() {
    nft::cuda::Program p{};
    p.n = n;
    p.weight = cached ? nullptr : weight.data();
    if (cached) p.codes = bits <= 15 ? (const void*)narrow.data() : (const void*)wide.data();
    p.code_bytes = bits <= 15 ? 2 : 4;
    p.step = &step;
    p.weight_bits = bits, p.device_bits = 1;
    p.path = kPathFast;
    p.table = table.data();
    p.keys = &kKeys[0][0], p.chips = kChips, p.stream = 0x9abcdef0u;
    return p;
  }

  Table view() const { return {table.data(), 1 << bits, constant}; }

  int64_t n;
  int bits;
  bool cached, constant;
  float step;
  std::vector<float> weight, table;
  std::vector<int32_t> wide;
  std::vector<int16_t> narrow;
};

template <OutType kOut>
std::vector<typename Stored<kOut>::Type> by_quads(Layer& layer) {
  std::vector<typename Stored<kOut>::Type> out((size_t)(kChips * layer.n));
  nft::cuda::Program p = layer.program();
  p.out = out.data();
  for (int64_t quad = 0; quad < quads_of(layer.n); ++quad) program_quad<kPathFast, kOut>(p, layer.view(), quad, 0, 1);
  return out;
}

template <OutType kOut, bool kConstant>
void compare(Layer& layer) {
  const auto want = by_quads<kOut>(layer);
  auto found = want;
  for (auto& w : found) w = 0;
  nft::cuda::Program p = layer.program();
  p.out = found.data();
  expect(eights_of(p) == layer.n / 8, "%ld weights are whole eights", (long)layer.n);
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t eight = 0; eight < eights_of(p); ++eight)
      program_eight<kOut, kConstant>(p, layer.view(), layer.step, layer.table[(size_t)1 << layer.bits], eight,
                                     load_eight(p, layer.step, eight), row, 2);
  expect(memcmp(found.data(), want.data(), found.size() * sizeof found[0]) == 0,
         "eights of %ld weights, %d bits, output %d, constant %d, cached %d", (long)layer.n, layer.bits, (int)kOut,
         kConstant, layer.cached);
}

template <OutType kOut>
void compare(Layer& layer) {
  compare<kOut, false>(layer);
  if (layer.constant) compare<kOut, true>(layer);
}

void test_eights() {
  for (int bits : {1, 6, 8, 15, 16})
    for (bool constant : {false, true})
      for (bool cached : {false, true})
        for (int64_t n : {8, 1000}) {
          Layer layer(n, bits, constant, cached);
          compare<OutType::kFloat32>(layer);
          compare<OutType::kBFloat16>(layer);
          compare<OutType::kFloat16>(layer);
        }
}

// A thread of the sampler may take eights only where all of them are aligned and the step is an ordinary one.
void test_who_takes_eights() {
  Layer layer(64, 8, true, true);
  std::vector<float> out(200);
  nft::cuda::Program p = layer.program();
  p.out = out.data();
  expect(eights_of(p) == 8, "aligned");
  p.out = out.data() + 1;
  expect(eights_of(p) == 0, "a result at an odd address");
  p.out = out.data();
  p.codes = layer.narrow.data() + 1;
  expect(eights_of(p) == 0, "codes at an odd address");
  p.codes = layer.narrow.data();
  p.n = 60;
  expect(eights_of(p) == 0, "chips that begin at odd addresses");
  p.chips = 1;
  expect(eights_of(p) == 7, "one chip, the last quad left over");
  for (float step : {0.0f, NAN}) {
    p.step = &step;
    expect(eights_of(p) == 0, "an irregular step");
  }
}

// ---- channels last

template <OutType kOut, OutType kTile>
void run_tile(const nft::cuda::Program& p, const Layer& layer, int64_t tile, int64_t chip) {
  typedef typename Stored<kOut>::Type Out;
  alignas(16) typename Stored<kTile>::Type memory[kTileWeights];
  const int channels = channels_in_tile(p, tile), eights = channels * p.taps / 8;
  expect(channels > 0 && channels * p.taps % 8 == 0 && eights <= kTileThreads,
         "a tile is whole eights, one per thread");
  const int64_t first = tile * (tile_channels(p.taps) * p.taps / 8);
  for (int thread = 0; thread < eights; ++thread) {
    const EightCodes c = unpacked_eight(load_packed(p, first + thread));
    float w[8];
    eight_on_chip<false>(layer.view(), 0.0f, key_of(p, chip), layer.step, first + thread, c, w);
    store_eight<kTile>(memory + 8 * thread, w, c.sign);
  }
  for (int thread = 0; thread < kTileThreads; ++thread)
    write_tile<kOut>(p, tile_start(p, tile), channels, memory, (Out*)p.out + chip * p.n, thread);
}

template <OutType kOut, bool kScaled>
void test_channels_last(int64_t outputs, int channels, int taps, int64_t parts) {
  typedef typename Stored<kOut>::Type Out;
  Layer layer(outputs * channels * taps, 8, false, true);
  std::vector<float> scale;
  for (int64_t o = 0; o < outputs; ++o) scale.push_back(0.37f + 0.21f * (float)(o % 7));
  std::vector<Out> want = by_quads<kOut>(layer);
  if (kScaled) {
    const std::vector<float> exact = by_quads<OutType::kFloat32>(layer);
    for (size_t i = 0; i < want.size(); ++i)
      want[i] = Stored<kOut>::from(mul(exact[i], scale[i % (size_t)layer.n / (size_t)(channels * taps)]));
  }
  std::vector<Out> found(want.size(), Out(12345));
  nft::cuda::Program p = layer.program();
  p.out = found.data(), p.out_type = kOut;
  p.channels = channels, p.taps = taps;
  p.scale = kScaled ? scale.data() : nullptr;
  Batch<2> batch;
  batch.count = 0;
  Layer before(1000, 8, false, true);  // so that shares begin anywhere
  append(batch, before.program());
  append(batch, p);
  set_shares(batch, parts);
  int64_t next = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const Range share = share_of(batch, part);
    if (!reaches(batch, share, 1)) continue;
    const Range tiles = tiles_in(quads_in(batch, share, 1), taps);
    expect(tiles.begin == next || tiles.begin >= tiles.end, "shares' tiles follow each other");
    TileStart at = tile_start(p, tiles.begin);
    for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, advance(at, p)) {
      const TileStart anew = tile_start(p, tile);
      expect(at.output == anew.output && at.channel == anew.channel, "from one tile to the next");
      for (int64_t chip = 0; chip < kChips; ++chip)
        run_tile<kOut, kScaled ? OutType::kFloat32 : kOut>(p, layer, tile, chip);
      next = tile + 1;
    }
  }
  bool same = true;
  for (int64_t chip = 0; chip < kChips; ++chip)
    for (int64_t o = 0; o < outputs; ++o)
      for (int c = 0; c < channels; ++c)
        for (int t = 0; t < taps; ++t) {
          const int64_t base = chip * p.n + o * channels * taps;
          same = same && memcmp(&found[(size_t)(base + t * channels + c)], &want[(size_t)(base + c * taps + t)],
                                sizeof(Out)) == 0;
        }
  expect(same, "%ld x %d x %d to %ld thread blocks, output %d", (long)outputs, channels, taps, (long)parts, (int)kOut);
}

void test_channels_last() {
  const int shapes[][3] = {{8, 3, 9},   {64, 3, 9}, {5, 64, 9},   {3, 512, 9}, {16, 7, 49},
                           {8, 40, 25}, {8, 2, 2},  {2, 2052, 2}, {8, 6, 128}, {1, 32768, 3}};
  for (const auto& s : shapes) {
    expect(fits_channels_last((int64_t)s[0] * s[1] * s[2], s[1], s[2]), "%d x %d x %d can be stored channels last",
           s[0], s[1], s[2]);
    for (int64_t parts : {1, 2, 7, 40}) {
      test_channels_last<OutType::kBFloat16, false>(s[0], s[1], s[2], parts);
      test_channels_last<OutType::kBFloat16, true>(s[0], s[1], s[2], parts);
      test_channels_last<OutType::kFloat16, true>(s[0], s[1], s[2], parts);
      test_channels_last<OutType::kFloat32, false>(s[0], s[1], s[2], parts);
    }
  }
  expect(!fits_channels_last(9 * 3 * 5, 3, 9), "not whole eights");
  expect(!fits_channels_last(64 * 8, 64, 1) && !fits_channels_last(64 * 9, 1, 9), "nothing to turn");
  expect(!fits_channels_last(int64_t(8) * 129, 8, 129) && !fits_channels_last(int64_t(8) * 65536, 65536, 2),
         "out of reach");
  for (int taps = 2; taps <= kMostTaps; ++taps)
    expect(tile_channels(taps) > 0 && tile_channels(taps) % 8 == 0 && tile_channels(taps) * taps <= kTileWeights &&
               tile_channels(taps) * taps > kTileWeights / 2 - 8,
           "tiles of %d taps", taps);
}

// Division by a product, over all that a tile can ask for.
void test_reciprocal() {
  for (uint32_t channels : {2u, 3u, 7u, 63u, 64u, 512u, 1000u, 32767u, 32768u}) {
    const uint32_t reciprocal = (uint32_t)((uint64_t(1) << 32) / channels + 1);
    bool exact = true;
    for (uint32_t a = 0; a < channels + 2 * kTileWeights; ++a)
      exact = exact && upper_product(a, reciprocal) == a / channels;
    expect(exact, "quotients by %u", channels);
  }
}

}  // namespace

int main() {
  test_eights();
  test_who_takes_eights();
  test_channels_last();
  test_reciprocal();
  return nft_test::exit_code("eight_weights");
}
