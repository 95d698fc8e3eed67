// The tile of a thread block: its sizes, its shared memory, and which thread and lane holds which part.
//
// Both operands are in shared memory with the inner index running fastest, in 32-bit words of
// two halves or one float. Counted in words, mma.m16n8k16 (halves) and mma.m16n8k8 (tf32) read
// alike: eight words of 16 rows and 8 columns. Rows of words have four spare words, so that
// neither the reads of fragments nor the 16-byte writes of gathered input collide in a bank.
#pragma once

#include "cuda/one_pass/shape.h"

namespace nft {
namespace NFT_ISA {

// Wide: many columns share a generated weight. Narrow: for few
// columns, where more and smaller tiles of rows fill the GPU.
template <cuda::OutType kNumber, bool kWide>
struct Tile {
  typedef typename Stored<kNumber>::Type Element;
  static constexpr cuda::OutType kType = kNumber;
  static constexpr int kRows = kWide ? 64 : 16;
  static constexpr int kColumns = kWide ? 128 : 32;
  static constexpr int kWords = kWide ? 16 : 32;  // of the inner index, per step
  static constexpr int kPerWord = 4 / sizeof(Element);
  static constexpr int kInner = kWords * kPerWord;
  static constexpr int kPitch = kInner + 4 * kPerWord;  // elements from one row (column) to the next

  static constexpr int kWarpsDown = kWide ? 2 : 1;
  static constexpr int kWarpsAcross = 4;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kDown = kRows / kWarpsDown / 16;  // products of a warp
  static constexpr int kAcross = kColumns / kWarpsAcross / 8;

  // A thread gathers the input of one column, a part of the step's inner elements.
  static constexpr int kPart = kInner * kColumns / kThreads;
  static constexpr int kPartWords = kPart / kPerWord;
  static_assert(kPartWords == 8 && kThreads % kColumns == 0, "a part is two 16-byte vectors");

  // float32 is multiplied as three products of tf32: low * high + high * low + high * high.
  static constexpr int kSplit = kPerWord == 1 ? 2 : 1;
  static constexpr int kProducts = kPerWord == 1 ? 3 : 1;
  static constexpr int kAtOnce = kSplit == 2 && kAcross > 2 ? 2 : kAcross;  // products across that run at once
};

// What a thread keeps in registers. A float32 fragment has two tf32 parts: [0] the high one, [1] the remainder.
template <class T>
struct State {
  float sum[T::kDown][T::kAcross][4];
  uint32_t a[T::kSplit][4];
  uint32_t b[T::kSplit][T::kAcross][2];
  float fresh[T::kAtOnce][4];
};

// What a product is added to. Tensor cores round their sums toward zero. Over many steps these errors, all of one sign,
// would grow to hundreds of units in the last place. So float32 adds up the products of eight inner elements by
// themselves, and adds that to the sum with rounding to nearest.
template <class T>
NFT_FN float* addend(State<T>& state, int down, int across) {
  if constexpr (T::kSplit == 2)
    return state.fresh[across % T::kAtOnce];
  else
    return state.sum[down][across];
}

// Most arrays have two halves: one is filled while slower warps still multiply the other.
template <class T>
struct alignas(16) Shared {
  typename T::Element weight[2][T::kRows * T::kPitch];
  typename T::Element input[2][T::kColumns * T::kPitch];
  Tap tap[2][T::kInner];
  Column column[T::kColumns];
  Place place;  // these two are here to save the threads' registers
  float* part_sums;
};

template <class T>
NFT_FN int steps_of(const Sizes& s) {
  return (s.inner + T::kInner - 1) / T::kInner;
}

// Element n of a step.
template <class T>
NFT_FN Tap tap_of(const cuda::OnePassProduct& f, const Sizes& s, int step, int n) {
  return tap_of(f, s, step * T::kInner + n);
}

// ---- weights: from quads to threads

// Quads that cover a row's part of a step. A row that does not start at a multiple of four needs one more. Elements of
// its first and last quad that lie outside are generated a second time where they belong.
template <class T>
NFT_FN int slots_of_row(int inner) {
  return T::kInner / 4 + (inner % 4 != 0);
}

template <class T>
NFT_FN int slots_of_step(const Sizes& s) {
  return T::kRows * slots_of_row<T>(s.inner);
}

// One quad's place: its element i belongs to inner index `first`
// + i of the step, which may be negative or past the step.
struct Slot {
  int row;  // of the tile
  int first;
  int64_t quad;
  int valid;  // elements i with first + i < valid are weights of this row; the other elements are zero
};

template <class T>
NFT_FN Slot slot_of(const Sizes& s, const Place& place, int step, int slot) {
  const int aligned = T::kInner / 4, odd = aligned + 1;
  Slot to;
  to.row = s.inner % 4 ? slot / odd : slot / aligned;  // divisions by constants
  const int nth = s.inner % 4 ? slot - to.row * odd : slot - to.row * aligned;
  const int from = step * T::kInner;
  const int64_t row = (int64_t)place.group * s.group_rows + place.row + to.row;
  const int64_t element = row * s.inner + from;
  to.quad = element / 4 + nth;
  to.first = 4 * nth - (int)(element % 4);
  to.valid = place.row + to.row < s.group_rows ? s.inner - from : 0;
  return to;
}

// Whether the quad holds any weight of the step.
template <class T>
NFT_FN bool is_used(const Slot& s) {
  return s.valid > 0 && s.first < T::kInner && s.first < s.valid && s.first + 4 > 0;
}

// ---- the input: parts of columns to threads

template <class T>
NFT_FN int column_of_thread(int thread) {
  return thread % T::kColumns;
}
template <class T>
NFT_FN int part_of_thread(int thread) {
  return thread / T::kColumns * T::kPart;
}

// ---- fragments of mma.m16n8k16 and m16n8k8, in words

struct Spot {
  int line, word;  // row (A) or column (B), and word of the inner index, within 16 x 8 or 8 x 8
};
NFT_FN Spot spot_of_a(int lane, int i) { return {lane / 4 + 8 * (i % 2), lane % 4 + 4 * (i / 2)}; }
NFT_FN Spot spot_of_b(int lane, int i) { return {lane / 4, lane % 4 + 4 * i}; }

// First row and column of a warp in the tile.
template <class T>
NFT_FN int row_of_warp(int warp) {
  return warp % T::kWarpsDown * (16 * T::kDown);
}
template <class T>
NFT_FN int column_of_warp(int warp) {
  return warp / T::kWarpsDown * (8 * T::kAcross);
}

// Row and column in the tile of number i of a thread's product (down, across).
template <class T>
NFT_FN int row_of_sum(int thread, int down, int i) {
  return row_of_warp<T>(thread / 32) + 16 * down + thread % 32 / 4 + 8 * (i / 2);
}
template <class T>
NFT_FN int column_of_sum(int thread, int across, int i) {
  return column_of_warp<T>(thread / 32) + 8 * across + 2 * (thread % 4) + i % 2;
}

}  // namespace NFT_ISA
}  // namespace nft
