// Bytes from [channels, places] to [places, channels], sixteen channels of a place at a time, for the products of
// csrc/cuda/fused/taps.h. Neighbouring threads take neighbouring places: they read what lies together, and write whole vectors.
#pragma once

#include "fused/fill.h"

namespace nft {
namespace NFT_ISA {

// A 64-bit division costs some hundred instructions on a device.
NFT_FN int64_t quotient_of(int64_t a, int64_t by) {
  return (uint64_t)(a | by) >> 32 ? a / by : (int64_t)((uint32_t)a / (uint32_t)by);
}

// Where the first of them is read and written, in elements; the others are `places` apart there and neighbours here.
struct Turn {
  int64_t from, to;
};

NFT_FN Turn turn_of(int64_t nth, int64_t channels, int64_t places) {
  const int64_t above = quotient_of(nth, places), place = nth - above * places;
  return {above * kVector * places + place, place * channels + above * kVector};
}

// `number(i)` gives the i-th of sixteen; `to` is a multiple of sixteen bytes.
template <class F>
NFT_FN void put_sixteen(int8_t* to, const F& number) {
  uint32_t words[4];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) words[i] = word_of(number(4 * i), number(4 * i + 1), number(4 * i + 2), number(4 * i + 3));
  put_four(to, words[0], words[1], words[2], words[3]);
}

// Sixteen of [rows, channels, places] stored weights, numbered over all of them.
NFT_FN void turn_sixteen(const int8_t* from, int8_t* to, int64_t nth, int channels, int places) {
  const int64_t size = (int64_t)channels * places, row = quotient_of(nth, size / kVector);
  const Turn turn = turn_of(nth - row * (size / kVector), channels, places);
  const int8_t* const first = from + row * size + turn.from;
  put_sixteen(to + row * size + turn.to, [&](int i) { return first[i * places]; });
}

}  // namespace NFT_ISA
}  // namespace nft
