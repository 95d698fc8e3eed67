// Programs a convolution's weights into channels-last memory, [outputs, taps, channels], so that torch's product need
// not copy them. Codes and random numbers come in the logical order [outputs, channels, taps].
//
// A thread block programs a tile of whole channels of consecutive outputs into shared memory, one eight per thread.
// Then it writes the tile tap by tap, with neighbouring channels in neighbouring threads. Host and device compile the
// same functions (csrc/tests/cuda/test_eight_weights.cpp).
#pragma once

#include <type_traits>

#include "cuda/sampler/layer_batch.h"
#include "cuda/sampler/eight_weights.h"

namespace nft {
namespace NFT_ISA {

constexpr int kTileThreads = 128, kTileWeights = 8 * kTileThreads;  // at most one eight per thread
constexpr int kMostTaps = 128, kMostChannels = 1 << 15;
constexpr int kChannelsLastTableBytes = 32 << 10;  // of shared memory, beside the tile

// Whether n weights [outputs, channels, taps] can be stored so. With one channel or one tap both orders are the same.
NFT_FN bool fits_channels_last(int64_t n, int64_t channels, int64_t taps) {
  return taps >= 2 && taps <= kMostTaps && channels >= 2 && channels <= kMostChannels && n % 8 == 0;
}

// Channels of a tile, counted across outputs. A multiple of eight, so that a tile is whole eights.
NFT_FN int tile_channels(int taps) { return kTileWeights / (8 * taps) * 8; }

// The tiles of a share of quads: those whose first weight is in the share.
NFT_FN Range tiles_in(const Range& quads, int taps) {
  const int64_t weights = (int64_t)tile_channels(taps) * taps;
  return {(4 * quads.begin + weights - 1) / weights, (4 * quads.end + weights - 1) / weights};
}

// Where a tile begins, and 2^32 / channels rounded up, which divides numbers up to 2^17 exactly.
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

// Moves on to the next tile.
NFT_FN void advance(TileStart& at, const cuda::Program& p) {
  const int channel = at.channel + tile_channels(p.taps);
  const int outputs = (int)upper_product((uint32_t)channel, at.reciprocal);
  at.output += outputs;
  at.channel = channel - outputs * p.channels;
}

// The number of channels in tile `tile`.
NFT_FN int channels_in_tile(const cuda::Program& p, int64_t tile) {
  const int64_t left = p.n / p.taps - tile * tile_channels(p.taps);
  return left < tile_channels(p.taps) ? (int)left : tile_channels(p.taps);
}

// The output of a tile's k-th channel, and where its tap 0 is stored, in elements. Taps are `channels` elements apart.
struct ChannelPlace {
  int64_t output, offset;
};

NFT_FN ChannelPlace channel_place(const cuda::Program& p, const TileStart& at, int k) {
  const int channel = at.channel + k;
  const int outputs = (int)upper_product((uint32_t)channel, at.reciprocal);
  return {at.output + outputs, (at.output + outputs) * p.channels * p.taps + (channel - outputs * p.channels)};
}

// Threads that write one tap of a tile: a power of two, from one warp to all threads. The others write the next taps.
NFT_FN int threads_per_tap(int taps) {
  int lanes = 32;
  while (lanes < kTileThreads && lanes < tile_channels(taps)) lanes *= 2;
  return lanes;
}

// A tile's number as it is stored. With a scale the tile holds float32, and the rounding follows the scale.
template <cuda::OutType kOut, class Held>
NFT_FN typename Stored<kOut>::Type from_tile(const Held& held, float scale) {
  if constexpr (std::is_same<Held, float>::value)
    return Stored<kOut>::from(mul(held, scale));
  else
    return held;
}

// Writes a thread's part of the tile to memory. p.scale [outputs] multiplies the rows of a float32 tile.
template <cuda::OutType kOut, class Held>
NFT_FN void write_tile(const cuda::Program& p, const TileStart& at, int channels, const Held* tile,
                       typename Stored<kOut>::Type* out, int thread) {
  const int taps = opaque(p.taps), mine = opaque(thread);  // computed here: programming the weights needs all registers
  const int lanes = threads_per_tap(taps), tap_stride = kTileThreads / lanes;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int k = mine & (lanes - 1); k < channels; k += lanes) {
    const ChannelPlace place = channel_place(p, at, k);
    typename Stored<kOut>::Type* const to = out + place.offset;
    const float scale = p.scale ? p.scale[place.output] : 1.0f;  // a product with one is exact
    for (int tap = mine / lanes; tap < taps; tap += tap_stride)
      to[(int64_t)tap * p.channels] = from_tile<kOut>(tile[k * taps + tap], scale);
  }
}

}  // namespace NFT_ISA
}  // namespace nft
