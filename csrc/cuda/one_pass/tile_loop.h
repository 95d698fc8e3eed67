// The loop over one tile of the result, written for a team of threads. On the GPU each thread runs it for itself. In a
// test on the host one thread runs every phase for all threads (csrc/tests/cuda/test_one_pass.cpp). A Team offers
//
//   each(f)                                f(thread, its state) for every thread
//   barrier()                              what was written to shared memory is visible
//   mma(down, across, a_half, b_half)      addend(state, down, across) += state.a[a_half] * state.b[b_half][across],
//                                          by whole warps
#pragma once

#include "cuda/one_pass/split.h"

namespace nft {
namespace NFT_ISA {

// float32 rounded to tf32 (10 bits of fraction), to nearest, ties away from zero.
NFT_FN uint32_t to_tf32(float a) {
#if defined(__CUDA_ARCH__)
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(a));
  return bits;
#else
  return a == a ? (bits_of(a) + 0x1000u) & 0xffffe000u : 0x7fffffffu;
#endif
}

template <class T>
NFT_FN void begin(State<T>& state) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < 4 * T::kDown * T::kAcross; ++i) state.sum[i / 4 / T::kAcross][i / 4 % T::kAcross][i % 4] = 0;
}

// Register i of a fragment: its word, or its word's two tf32 parts.
// The remainder of an infinite float32 is NaN, like its products.
template <class T>
NFT_FN void read_word(const typename T::Element* line, int word, uint32_t& high, uint32_t& low) {
  high = word_at(line + word * T::kPerWord);
  if constexpr (T::kSplit == 2) {
    const float whole = float_of(high);
    high = to_tf32(whole);
    low = to_tf32(sub(whole, float_of(high)));
  }
}

template <class T>
NFT_FN void read_a(const typename T::Element* weight, int thread, int down, int k, State<T>& state) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    const Spot at = spot_of_a(thread % 32, i);
    const int row = row_of_warp<T>(thread / 32) + 16 * down + at.line;
    read_word<T>(weight + row * T::kPitch, 8 * k + at.word, state.a[0][i], state.a[T::kSplit - 1][i]);
  }
}

template <class T>
NFT_FN void read_b(const typename T::Element* input, int thread, int across, int k, State<T>& state) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < 2; ++i) {
    const Spot at = spot_of_b(thread % 32, i);
    const int column = column_of_warp<T>(thread / 32) + 8 * across + at.line;
    read_word<T>(input + column * T::kPitch, 8 * k + at.word, state.b[0][across][i], state.b[T::kSplit - 1][across][i]);
  }
}

template <class T>
NFT_FN void clear_fresh(State<T>& state) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < 4 * T::kAtOnce; ++i) state.fresh[i / 4][i % 4] = 0.0f;
}

template <class T>
NFT_FN void add_fresh(State<T>& state, int down, int first) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < 4 * T::kAtOnce; ++i) {
    float& sum = state.sum[down][first + i / 4][i % 4];
    sum = add(sum, state.fresh[i / 4][i % 4]);
  }
}

// The products of a warp's row `down` with its columns from `first` on.
template <class T, class Team>
NFT_FN void multiply_at_once(int down, int first, Team& team) {
  if constexpr (T::kSplit == 2) team.each([&](int, State<T>& state) { clear_fresh<T>(state); });
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int product = 0; product < T::kProducts; ++product)  // small ones first
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int across = 0; across < T::kAtOnce; ++across)
      team.mma(down, first + across, T::kProducts == 3 && product == 0, T::kProducts == 3 && product == 1);
  if constexpr (T::kSplit == 2) team.each([&](int, State<T>& state) { add_fresh<T>(state, down, first); });
}

// One step's product.
template <class T, class Team>
NFT_FN void multiply(const typename T::Element* weight, const typename T::Element* input, Team& team) {
#if defined(__CUDACC__)  // two tf32 parts of everything leave no registers for the next words
#pragma unroll(T::kSplit == 2 ? 1 : T::kWords / 8)
#endif
  for (int k = 0; k < T::kWords / 8; ++k) {
    team.each([&](int thread, State<T>& state) {
#if defined(__CUDACC__)
#pragma unroll
#endif
      for (int across = 0; across < T::kAcross; ++across) read_b<T>(input, thread, across, k, state);
    });
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int down = 0; down < T::kDown; ++down) {
      team.each([&](int thread, State<T>& state) { read_a<T>(weight, thread, down, k, state); });
#if defined(__CUDACC__)
#pragma unroll
#endif
      for (int first = 0; first < T::kAcross; first += T::kAtOnce) multiply_at_once<T>(down, first, team);
    }
  }
}

// A part of a tile, from codes and key to its stored result, or to its sums in memory if
// `part_sums` is given. S is the sizes of the layer's product (Sizes) or of its input's
// gradient (GradientSizes). Between two barriers threads fill one half of the shared memory
// and multiply the other. The places under the kernel are found one step before their use.
template <class T, int kPath, class S, class Team>
NFT_FN void multiply_tile(const cuda::OnePassProduct& f, const Table& table, const S& s, const Place& place,
                          const Steps& steps, float* part_sums, Shared<T>& shared, Team& team) {
  team.each([&](int thread, State<T>& state) {
    begin<T>(state);
    if (thread == 0) {
      shared.place = place;
      shared.part_sums = part_sums;
    }
    fill_columns<T>(f, s, place, thread, shared.column);
    fill_taps<T>(f, s, steps.begin, thread, shared.tap[steps.begin % 2]);
    for (auto& half : shared.weight) clear_rest<T>(s, thread, half);
  });
  team.barrier();
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int step = steps.begin; step < steps.end; ++step) {
    const int half = step % 2;
    team.each([&](int thread, State<T>&) {
      // The loads come first, so that they run while the weights are
      // generated. The per-device path has no registers for this.
      const Column& column = shared.column[column_of_thread<T>(thread)];
      const Tap* const taps = shared.tap[half] + part_of_thread<T>(thread);
      uint32_t words[T::kPartWords];
      if (kPath != kPathDevice) gather<T>(f, s, column, taps, words);
      fill_weights<T, kPath>(f.program, table, s, shared.place, step, thread, shared.weight[half]);
      if (kPath == kPathDevice) gather<T>(f, s, column, taps, words);
      put_input<T>(thread, words, shared.input[half]);
      fill_taps<T>(f, s, step + 1, thread, shared.tap[1 - half]);
    });
    team.barrier();
    multiply<T>(shared.weight[half], shared.input[half], team);
  }
  team.each([&](int thread, State<T>& state) {
    const Place here = shared.place;
    if (shared.part_sums)
      write_part<T>(state, thread, shared.part_sums);
    else if (f.y_type == cuda::OutType::kBFloat16)
      store_results<T, cuda::OutType::kBFloat16>(f, s, here, thread, 0, 0, state.sum);
    else if (f.y_type == cuda::OutType::kFloat16)
      store_results<T, cuda::OutType::kFloat16>(f, s, here, thread, 0, 0, state.sum);
    else
      store_results<T, cuda::OutType::kFloat32>(f, s, here, thread, 0, 0, state.sum);
  });
  team.barrier();  // the next tile has another place
}

}  // namespace NFT_ISA
}  // namespace nft
