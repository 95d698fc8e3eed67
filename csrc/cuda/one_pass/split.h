// Splits the steps of a tile among several thread blocks if there are too few tiles to fill a GPU. (A layer of 512
// outputs has 32 tiles for few rows of input and one chip; a GPU has more than a hundred multiprocessors.) Each thread
// block writes its part of the sums to its own memory. A second launch adds the parts in their order and applies the
// epilogue: no atomics, the same bits every time.
#pragma once

#include "cuda/one_pass/epilogue.h"
#include "cuda/one_pass/tile_fill.h"

namespace nft {
namespace cuda {

// Part p of every tile takes steps p * steps .. (p + 1) * steps - 1; the last part may be shorter.
struct Split {
  int parts;  // 1: no split
  int steps;
};

}  // namespace cuda

namespace NFT_ISA {

// Prices of a split, in steps: a thread block's work before its first step; and writing, launching and adding up.
constexpr int64_t kStartPrice = 1, kAddingPrice = 3;
constexpr int kMostRounds = 4;

// The cheapest split of `tiles` tiles with `steps` steps each, on a GPU that holds `resident` thread blocks at once. A
// launch takes as many rounds as it fills the GPU, and a round takes as long as its longest part.
NFT_FN cuda::Split split_of(int64_t tiles, int steps, int64_t resident) {
  cuda::Split best = {1, steps};
  if (tiles <= 0 || steps <= 1 || resident <= 0) return best;
  int64_t price = (tiles + resident - 1) / resident * (steps + kStartPrice);
  for (int64_t rounds = 1; rounds <= kMostRounds; ++rounds) {
    const int64_t room = rounds * resident / tiles, wanted = room < steps ? room : steps;
    if (wanted < 2) continue;
    const int each = (int)((steps + wanted - 1) / wanted), parts = (steps + each - 1) / each;
    const int64_t full = (tiles * parts + resident - 1) / resident, now = full * (each + kStartPrice) + kAddingPrice;
    if (now >= price) continue;
    price = now;
    best = {parts, each};
  }
  return best;
}

// Steps of a part, [begin, end).
struct Steps {
  int begin, end;
};
NFT_FN Steps steps_of_part(const cuda::Split& split, int part, int steps) {
  const int begin = part * split.steps, end = begin + split.steps;
  return {begin, end < steps ? end : steps};
}

// ---- the parts' sums in memory: [tile, part, product of a warp, thread, 4]. What a warp writes at once is contiguous.

template <class T>
NFT_FN int64_t sums_of_tile() {
  return T::kRows * T::kColumns;
}

template <class T>
NFT_FN int64_t place_of_sums(const cuda::Split& split, int64_t tile, int part, int product, int thread) {
  return (((tile * split.parts + part) * (T::kDown * T::kAcross) + product) * T::kThreads + thread) * 4;
}

template <class T>
NFT_FN void write_part(const State<T>& state, int thread, float* sums) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int n = 0; n < T::kDown * T::kAcross; ++n)
    put_quad(sums + (n * T::kThreads + thread) * 4, state.sum[n / T::kAcross][n % T::kAcross]);
}

// Adds up all parts of one product of one thread, and stores the results. `at` numbers products and threads as in
// memory, without the parts. Sums are float32 for every type of a tile's numbers.
template <class T, cuda::OutType kY>
NFT_FN void add_parts(const cuda::OnePassProduct& f, const Sizes& s, const Tiling& tiling, const cuda::Split& split,
                      const float* sums, int64_t at) {
  const int thread = (int)(at % T::kThreads), product = (int)(at / T::kThreads % (T::kDown * T::kAcross));
  const int64_t tile = at / (T::kThreads * T::kDown * T::kAcross);
  float sum[1][1][4] = {};
#if defined(__CUDACC__)
#pragma unroll 4
#endif
  for (int part = 0; part < split.parts; ++part) {
    uint32_t words[4];
    four_words_at(sums + place_of_sums<T>(split, tile, part, product, thread), words);
    for (int i = 0; i < 4; ++i) sum[0][0][i] = add(sum[0][0][i], float_of(words[i]));
  }
  store_results<T, kY, 1, 1>(f, s, place_of(f, tiling, tile), thread, product / T::kAcross, product % T::kAcross, sum);
}

}  // namespace NFT_ISA
}  // namespace nft
