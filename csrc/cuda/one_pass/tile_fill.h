// What one thread writes to a tile's shared memory in each step: generated weights and gathered input.
#pragma once

#include "cuda/one_pass/gradient.h"

namespace nft {
namespace NFT_ISA {

// ---- words of shared memory: one access each on the GPU; copied bytes on the host, where aliasing rules apply

template <class Element>
NFT_FN uint32_t word_at(const Element* p) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const uint32_t*>(p);
#else
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return word;
#endif
}

NFT_FN uint32_t word_of(float only) { return bits_of(only); }
NFT_FN uint32_t word_of(uint16_t low, uint16_t high) { return low | (uint32_t)high << 16; }

template <class Element>
NFT_FN void put_four(Element* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<uint4*>(p) = make_uint4(a, b, c, d);
#else
  const uint32_t w[4] = {a, b, c, d};
  memcpy(p, w, sizeof w);
#endif
}

// Four neighbouring elements at a multiple of four.
NFT_FN void put_quad(float* p, const float* v) {
  put_four(p, word_of(v[0]), word_of(v[1]), word_of(v[2]), word_of(v[3]));
}
NFT_FN void put_quad(uint16_t* p, const uint16_t* v) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<uint2*>(p) = make_uint2(word_of(v[0], v[1]), word_of(v[2], v[3]));
#else
  memcpy(p, v, 4 * sizeof *v);
#endif
}

// The input is constant during a launch, so the GPU may fetch it through its read-only path.
template <class Element>
NFT_FN Element input_at(const Element* p) {
#if defined(__CUDA_ARCH__)
  return __ldg(p);
#else
  return *p;
#endif
}

template <class Element>
NFT_FN void four_words_at(const Element* p, uint32_t* w) {
#if defined(__CUDA_ARCH__)
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(p));
  w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
#else
  memcpy(w, p, 16);
#endif
}

// ---- weights

// Four programmed weights on one chip, the float32 numbers of cuda::program.
template <int kPath>
NFT_FN void weights_of_quad(const cuda::Program& p, const Table& t, int64_t chip, float step, int64_t quad, float* w) {
  const Codes c = load_codes(p, step, quad, count_of(p.n, quad));
  float in_steps[4];
  quad_on_chip<kPath>(p, t, chip, quad, c, in_steps);
  for (int i = 0; i < 4; ++i) w[i] = programmed(in_steps[i], step, c.sign[i]);
}

// The same in the tile's type: the first `valid` weights, then zeros. A zero step makes every weight zero, and a NaN
// step makes every weight NaN: the step itself.
template <class T, int kPath>
NFT_FN void quad_for_tile(const cuda::Program& p, const Table& t, int64_t chip, float step, int64_t quad, int valid,
                          bool used, typename T::Element* v) {
  float w[4] = {step, step, step, step};
  if (used && step > 0.0f) weights_of_quad<kPath>(p, t, chip, step, quad, w);
  for (int i = 0; i < 4; ++i) v[i] = Stored<T::kType>::from(i < valid ? w[i] : 0.0f);
}

// A slot's numbers into the tile.
template <class T>
NFT_FN void put_weights(const Sizes& s, const Slot& to, const typename T::Element* v, typename T::Element* tile) {
  typename T::Element* row = tile + to.row * T::kPitch + to.first;
  if (s.inner % 4 == 0) {
    put_quad(row, v);
    return;
  }
  for (int i = 0; i < 4; ++i)
    if (to.first + i >= 0 && to.first + i < T::kInner) row[i] = v[i];
}

template <class T>
NFT_FN void clear_rest(const Sizes&, int, typename T::Element*) {}  // the slots cover the tile

// A thread's share of one step's weights. One thread writes each
// element of the tile; elements outside the weight become zero.
template <class T, int kPath, class S>
NFT_FN void fill_weights(const cuda::Program& p, const Table& t, const S& s, const Place& place, int step, int thread,
                         typename T::Element* tile) {
  const float step_size = usable_step(p.step);
  const int slots = slots_of_step<T>(s);
#if defined(__CUDACC__)
#pragma unroll 1  // one quad's registers at a time
#endif
  for (int n = thread; n < slots; n += T::kThreads) {
    const auto to = slot_of<T>(s, place, step, n);
    typename T::Element v[4];
    quad_for_tile<T, kPath>(p, t, place.chip, step_size, to.quad, to.valid - to.first, is_used<T>(to), v);
    put_weights<T>(s, to, v, tile);
  }
}

// ---- input

// Where a tile's columns start, for all its steps.
template <class T, class S>
NFT_FN void fill_columns(const cuda::OnePassProduct& f, const S& s, const Place& place, int thread, Column* columns) {
  if (thread < T::kColumns) columns[thread] = column_of(f, s, place, place.column + thread);
}

// Places under the kernel of one step, for all columns.
template <class T, class S>
NFT_FN void fill_taps(const cuda::OnePassProduct& f, const S& s, int step, int thread, Tap* taps) {
  if (thread < T::kInner) taps[thread] = tap_of<T>(f, s, step, thread);
}

template <class T>
NFT_FN bool is_vector(const typename T::Element* p) {
  return ((uintptr_t)p & 15) == 0;
}

// One element of a column, or zero.
template <class T>
NFT_FN typename T::Element gathered(const cuda::OnePassProduct& f, const Column& c, const Tap& t) {
  return is_inside(f, c, t) ? input_at((const typename T::Element*)f.x + c.start + t.offset) : typename T::Element(0);
}

NFT_FN uint32_t packed(const float* v) { return word_of(v[0]); }
NFT_FN uint32_t packed(const uint16_t* v) { return word_of(v[0], v[1]); }

// A thread's part of one step's input, into registers.
template <class T>
NFT_FN void gather(const cuda::OnePassProduct& f, const Sizes& s, const Column& seen, const Tap* taps,
                   uint32_t* words) {
  const Column c = seen;
  if (s.dense && is_inside(f, c, taps[0]) && is_inside(f, c, taps[T::kPart - 1])) {
    const typename T::Element* from = (const typename T::Element*)f.x + c.start + taps[0].offset;
    if (is_vector<T>(from)) {
      for (int i = 0; i < T::kPartWords; i += 4) four_words_at(from + i * T::kPerWord, words + i);
      return;
    }
  }
  typename T::Element v[T::kPart];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < T::kPart; ++i) v[i] = gathered<T>(f, c, taps[i]);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < T::kPartWords; ++i) words[i] = packed(v + i * T::kPerWord);
}

template <class T>
NFT_FN void put_input(int thread, const uint32_t* words, typename T::Element* tile) {
  typename T::Element* to = tile + column_of_thread<T>(thread) * T::kPitch + part_of_thread<T>(thread);
  put_four(to, words[0], words[1], words[2], words[3]);
  put_four(to + 4 * T::kPerWord, words[4], words[5], words[6], words[7]);
}

}  // namespace NFT_ISA
}  // namespace nft
