// An input on its way to 8 bits (csrc/core/int8.h), four numbers at a time, wherever an image begins. Host and device compile
// the same templates, as in block.h.
#pragma once

#include "fused/epilogue.h"
#include "turned.h"

namespace nft {
namespace cuda {

// Images, one after the other in memory. On CUDA all pointers are the device's.
struct Images {
  const void* x;    // [images, size]
  OutType type;
  int64_t images, size;
  float* largest;   // [images] max|x|; NaN where there is one
  int8_t* rounded;  // [images, size]
  // Where given, x is [images, channels, places] and `rounded` [images, places, channels], channels a multiple of sixteen.
  int64_t channels = 0, places = 0;
};

}  // namespace cuda

namespace NFT_ISA {

NFT_FN Devices devices_of(const cuda::Program& p) { return {p.table, p.weight_bits, p.device_bits, p.path, p.mapping}; }

template <cuda::OutType kX>
NFT_FN Quad<float> four_of_image(const cuda::Images& m, int64_t image, int64_t quad) {
  const auto q = load((const typename Stored<kX>::Type*)m.x + image * m.size + 4 * quad, count_of(m.size, quad));
  Quad<float> a;
  for (int i = 0; i < 4; ++i) a.v[i] = loaded<kX>(q.v[i]);
  return a;
}

// Largest magnitude of four as its bit pattern: NaN > inf > finite. What an image has not counts as zero.
template <cuda::OutType kX>
NFT_FN uint32_t largest_of_four(const cuda::Images& m, int64_t image, int64_t quad) {
  const Quad<float> a = four_of_image<kX>(m, image, quad);
  uint32_t largest = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t u = bits_of(a.v[i]) & 0x7fffffffu;
    largest = u > largest ? u : largest;
  }
  return largest;
}

template <cuda::OutType kX>
NFT_FN void round_four(const cuda::Images& m, int64_t image, int64_t quad) {
  const Quad<float> a = four_of_image<kX>(m, image, quad);
  const float unit = image_unit(m.largest[image]);
  Quad<int8_t> q;
  for (int i = 0; i < 4; ++i) q.v[i] = to_int8(a.v[i], unit);
  store(m.rounded + image * m.size + 4 * quad, count_of(m.size, quad), q);
}

// The same of sixteen channels of a place, to where they are neighbours.
template <cuda::OutType kX>
NFT_FN void round_sixteen(const cuda::Images& m, int64_t image, int64_t nth) {
  const Turn turn = turn_of(nth, m.channels, m.places);
  const auto* const x = (const typename Stored<kX>::Type*)m.x + image * m.size + turn.from;
  const float unit = image_unit(m.largest[image]);
  put_sixteen(m.rounded + image * m.size + turn.to, [&](int i) { return to_int8(loaded<kX>(x[i * m.places]), unit); });
}

}  // namespace NFT_ISA
}  // namespace nft
