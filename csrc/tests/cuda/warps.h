// A thread block of the one-pass kernel on the host: a team of csrc/cuda/one_pass/tile_loop.h that runs each phase for
// all threads, and mma.sync emulated from the instruction's definition.
#pragma once

#include <math.h>

#include <memory>

#include "cuda/one_pass/tile_loop.h"
#include "tests/cuda/one_pass_case.h"

namespace nft_test {

using namespace nft::generic;
using nft::cuda::OutType;

// mma.m16n8k16 (two halves per word) and m16n8k8 (tf32), as the instruction set's manual lays out their registers
template <class T>
struct Team {
  std::unique_ptr<State<T>[]> state{new State<T>[T::kThreads]};
  const bool reversed;  // no phase may depend on the order of its threads

  explicit Team(bool backwards) : reversed(backwards) {}

  template <class F>
  void each(const F& f) {
    for (int i = 0; i < T::kThreads; ++i) {
      const int thread = reversed ? T::kThreads - 1 - i : i;
      f(thread, state[thread]);
    }
  }
  void barrier() {}

  // As tensor cores round, by measurements; their manual leaves it open.
  static float toward_zero(double a) {
    const float nearest = (float)a;
    return fabs((double)nearest) > fabs(a) ? nextafterf(nearest, 0.0f) : nearest;
  }

  static float number(uint32_t word, int i) {
    const uint32_t part = T::kPerWord == 2 ? (i ? word >> 16 : word & 0xffffu) : word;
    expect(T::kPerWord == 2 || (part & 0x1fffu) == 0 || part == 0x7fffffffu, "operand %08x is a tf32 number", part);
    return (float)number_at(T::kType, &part);
  }

  void mma(int down, int across, int a_half, int b_half) {
    for (int warp = 0; warp < T::kThreads / 32; ++warp) {
      State<T>* const lanes = &state[32 * warp];
      float a[16][8 * T::kPerWord], b[8][8 * T::kPerWord];
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < T::kPerWord; ++i) {
          const int group = lane / 4, k = lane % 4 * T::kPerWord + i, far = k + 4 * T::kPerWord;
          const uint32_t* ra = lanes[lane].a[a_half];
          const uint32_t* rb = lanes[lane].b[b_half][across];
          a[group][k] = number(ra[0], i), a[group + 8][k] = number(ra[1], i);
          a[group][far] = number(ra[2], i), a[group + 8][far] = number(ra[3], i);
          b[group][k] = number(rb[0], i), b[group][far] = number(rb[1], i);
        }
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
          float* const to = addend<T>(lanes[lane], down, across);
          double sum = to[i];
          for (int k = 0; k < 8 * T::kPerWord; ++k) sum += (double)a[row][k] * b[column][k];
          to[i] = toward_zero(sum);
        }
    }
  }
};

}  // namespace nft_test
