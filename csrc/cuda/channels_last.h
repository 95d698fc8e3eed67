// A convolution's weights into channels-last memory, [outputs, taps, channels], from codes in their logical order, [outputs, channels,
// taps], in which random numbers come too: so that a library's product need not copy them again.
//
// A thread block programs a tile of whole channels of consecutive outputs, octet by octet, into shared memory, and writes it out tap by tap,
// neighbouring threads neighbouring channels. Host and device compile the same functions (csrc/tests/test_cuda_octet.cpp).
#pragma once

#include <type_traits>

#include "many.h"
#include "octet.h"

namespace nft {
namespace NFT_ISA {

constexpr int kTileThreads = 128, kTileWeights = 8 * kTileThreads;  // at most: one octet a thread
constexpr int kMostTaps = 128, kMostChannels = 1 << 15;
constexpr int kTurnedTableBytes = 32 << 10;      // of shared memory, beside the tile

// Whether n weights [outputs, channels, taps] may be stored so. One channel, or one tap, is its own turn.
NFT_FN bool can_turn(int64_t n, int64_t channels, int64_t taps) {
  return taps >= 2 && taps <= kMostTaps && channels >= 2 && channels <= kMostChannels && n % 8 == 0;
}

// Channels of a tile, all outputs' channels counted through: a multiple of eight, so that tiles are whole octets.
NFT_FN int tile_channels(int taps) { return kTileWeights / (8 * taps) * 8; }

// A share's tiles, by the blocks of four weights dealt to it: those whose first weight is among them.
NFT_FN Range tiles_in(const Range& blocks, int taps) {
  const int64_t weights = (int64_t)tile_channels(taps) * taps;
  return {(4 * blocks.begin + weights - 1) / weights, (4 * blocks.end + weights - 1) / weights};
}

// Where a tile begins, and 2^32 / channels, rounded up: by it, numbers up to 2^17 are divided exactly.
struct TileStart {
  int64_t output;
  int channel;
  uint32_t reciprocal;
};

NFT_FN uint32_t upper_product(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

NFT_FN TileStart tile_start(const cuda::Program& p, int64_t tile) {
  const int64_t first = tile * tile_channels(p.taps), output = first / p.channels;
  return {output, (int)(first - output * p.channels), (uint32_t)((uint64_t(1) << 32) / (uint32_t)p.channels + 1)};
}

NFT_FN void go_on(TileStart& at, const cuda::Program& p) {
  const int channel = at.channel + tile_channels(p.taps);
  const int outputs = (int)upper_product((uint32_t)channel, at.reciprocal);
  at.output += outputs;
  at.channel = channel - outputs * p.channels;
}

// Channels that tile `tile` has.
NFT_FN int channels_in_tile(const cuda::Program& p, int64_t tile) {
  const int64_t left = p.n / p.taps - tile * tile_channels(p.taps);
  return left < tile_channels(p.taps) ? (int)left : tile_channels(p.taps);
}

// The output that the tile's k-th channel belongs to, and where its tap 0 is stored, in elements; the next taps are `channels` apart.
struct Turned {
  int64_t output, offset;
};

NFT_FN Turned turned_place(const cuda::Program& p, const TileStart& at, int k) {
  const int channel = at.channel + k;
  const int outputs = (int)upper_product((uint32_t)channel, at.reciprocal);
  return {at.output + outputs, (at.output + outputs) * p.channels * p.taps + (channel - outputs * p.channels)};
}

// Threads that write one tap of a tile: a power of two from a warp to all of them. Others write the next tap meanwhile.
NFT_FN int threads_a_tap(int taps) {
  int lanes = 32;
  while (lanes < kTileThreads && lanes < tile_channels(taps)) lanes *= 2;
  return lanes;
}

// A tile's number as it is stored; with a scale it is still float32, and is rounded after it.
template <cuda::OutType kOut, class Held>
NFT_FN typename Stored<kOut>::Type from_tile(const Held& held, float scale) {
  if constexpr (std::is_same<Held, float>::value) return Stored<kOut>::from(mul(held, scale));
  else return held;
}

// A thread's part of the tile's way out. Where tile is float32 and p.scale is given, that is the rows' scale, [outputs].
template <cuda::OutType kOut, class Held>
NFT_FN void write_tile(const cuda::Program& p, const TileStart& at, int channels, const Held* tile, typename Stored<kOut>::Type* out,
                       int thread) {
  const int taps = opaque(p.taps), mine = opaque(thread);  // computed here: while weights are programmed, registers are short
  const int lanes = threads_a_tap(taps), tap_stride = kTileThreads / lanes;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int k = mine & (lanes - 1); k < channels; k += lanes) {
    const Turned place = turned_place(p, at, k);
    typename Stored<kOut>::Type* const to = out + place.offset;
    const float scale = p.scale ? p.scale[place.output] : 1.0f;  // times one is exact
    for (int tap = mine / lanes; tap < taps; tap += tap_stride)
      to[(int64_t)tap * p.channels] = from_tile<kOut>(tile[k * taps + tap], scale);
  }
}

}  // namespace NFT_ISA
}  // namespace nft
