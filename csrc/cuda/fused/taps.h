// The product of stored bytes with another order of its inner index: place under the kernel first, channel last. Sums of integers
// are exact in any order, and in this one sixteen neighbours are channels of one place, neighbours in memory too where x is
// channels-last: one range check, one load and one store for sixteen bytes, of the input and of the weights. It takes
//
//   x                 with channels next to each other, sixteen-byte vectors aligned
//   program.out       [chips, rows, place, channel], as cuda::turn_weights makes it
//   channels a group  a multiple of sixteen
#pragma once

#include "fill.h"

namespace nft {
namespace NFT_ISA {

// The sizes of such a product; the type says which.
struct TapSizes : Sizes {};

NFT_FN bool is_aligned(const void* p) { return ((uintptr_t)p & (kVector - 1)) == 0; }

NFT_FN bool goes_by_tap(const cuda::Fused& f) {
  const cuda::Strides& t = f.x_strides;
  return channels_fill_vectors(f) && f.program.out && t.channel == 1 && is_aligned(f.x) && is_aligned(f.program.out) &&
         ((t.chip | t.image | t.y | t.x) & (kVector - 1)) == 0;
}

// Of sixteen inner elements, the first of them `vector` sixteens from the first of all.
NFT_FN Tap tap_of_vector(const cuda::Fused& f, const TapSizes& s, int vector) {
  const int each = s.group_channels / kVector, place = vector / each, y = place / f.kernel[1];
  if (vector >= s.inner / kVector) return {0, kOutside, kOutside};
  Tap tap;
  tap.y = y * f.dilation[0];
  tap.x = (place - y * f.kernel[1]) * f.dilation[1];
  tap.offset = (vector - place * each) * kVector + tap.y * f.x_strides.y + tap.x * f.x_strides.x;
  return tap;
}

// One place for sixteen elements, where that of the first of them stands otherwise.
template <class T>
NFT_FN void fill_taps(const cuda::Fused& f, const TapSizes& s, int step, int thread, Tap* taps) {
  constexpr int kVectors = T::kInner / kVector;
  if (thread < kVectors) taps[thread * kVector] = tap_of_vector(f, s, step * kVectors + thread);
}

template <class T, int kWords>
NFT_FN void gather(const cuda::Fused& f, const TapSizes&, const Column& seen, const Tap* taps, uint32_t* words) {
  const Column c = seen;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < kWords; i += 4) {
    const Tap t = taps[i * T::kPerWord];
    for (int j = 0; j < 4; ++j) words[i + j] = 0;
    if (is_inside(f, c, t)) four_words_at((const typename T::Element*)f.x + c.start + t.offset, words + i);
  }
}

// A tile has as many vectors of weights as threads.
template <class T>
NFT_FN void copy_weights(const cuda::Program& p, const TapSizes& s, const Place& place, int step, int thread,
                         typename T::Element* tile) {
  constexpr int kVectors = T::kInner / kVector;
  static_assert(T::kRows * kVectors == T::kThreads, "one vector a thread");
  const int row = thread / kVectors, at = thread % kVectors * kVector, k = step * T::kInner + at;
  uint32_t words[4] = {0, 0, 0, 0};
  if (place.row + row < s.group_rows && k < s.inner) {
    const int64_t above = (int64_t)place.group * s.group_rows + place.row + row;
    four_words_at((const typename T::Element*)p.out + place.chip * p.n + above * s.inner + k, words);
  }
  put_four(tile + row * T::kPitch + at, words[0], words[1], words[2], words[3]);
}

}  // namespace NFT_ISA
}  // namespace nft
