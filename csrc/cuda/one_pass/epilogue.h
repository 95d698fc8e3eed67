// From sums to stored results: bias, batch-norm's scale and shift, residual, ReLU, one rounding to the result's type.
#pragma once

#include "cuda/sampler/eight_weights.h"
#include "cuda/one_pass/tile.h"

namespace nft {
namespace NFT_ISA {

// A stored number as a float, exactly.
template <cuda::OutType kType>
NFT_FN float loaded(typename Stored<kType>::Type a) {
  if constexpr (kType == cuda::OutType::kFloat32) {
    return a;
  } else if constexpr (kType == cuda::OutType::kBFloat16) {
    return float_of((uint32_t)a << 16);
  } else {
#if defined(__CUDA_ARCH__)
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(a));
    return f;
#else
    const uint32_t sign = (uint32_t)(a & 0x8000u) << 16, exponent = a >> 10 & 31u, fraction = a & 1023u;
    if (exponent == 0) return with_sign(mul(from_int((int32_t)fraction), 5.9604644775390625e-08f /* 2^-24 */), sign);
    return float_of(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
#endif
  }
}

// A row's constants.
struct RowEpilogue {
  float bias, scale, shift;
};

NFT_FN RowEpilogue row_epilogue(const cuda::Epilogue& e, int row) {
  return {e.bias ? e.bias[row] : 0.0f, e.scale ? e.scale[row] : 1.0f, e.shift ? e.shift[row] : 0.0f};
}

// A missing operand is skipped: x + 0 would turn -0 into +0. NaN passes the ReLU.
NFT_FN float after_epilogue(const cuda::Epilogue& e, const RowEpilogue& r, float sum, float residual) {
  if (e.bias) sum = add(sum, r.bias);
  if (e.scale) sum = mul(sum, r.scale);
  if (e.shift) sum = add(sum, r.shift);
  if (e.residual) sum = add(sum, residual);
  return e.relu && sum < 0.0f ? 0.0f : sum;
}

// Output channel `row` of a pixel of one chip.
template <cuda::OutType kY>
NFT_FN void store_result(const cuda::OnePassProduct& f, int64_t chip, const Pixel& p, int row, const RowEpilogue& r,
                         float sum) {
  typedef typename Stored<kY>::Type Element;
  float residual = 0.0f;
  if (f.epilogue.residual)
    residual = loaded<kY>(((const Element*)f.epilogue.residual)[offset_of(f.epilogue.residual_strides, chip, p, row)]);
  ((Element*)f.y)[offset_of(f.y_strides, chip, p, row)] =
      Stored<kY>::from(after_epilogue(f.epilogue, r, sum, residual));
}

// Stores a thread's results of kDown x kAcross products of its warp, from product (down, across) on.
template <class T, cuda::OutType kY, int kDown, int kAcross>
NFT_FN void store_results(const cuda::OnePassProduct& f, const Sizes& s, const Place& place, int thread, int down,
                          int across, const float (&sum)[kDown][kAcross][4]) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int n = 0; n < 2 * kAcross; ++n) {
    const int64_t column = place.column + column_of_sum<T>(thread, across + n / 2, n % 2);
    if (column >= s.columns) continue;
    const Pixel pixel = pixel_of(f, s, column);
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int m = 0; m < 2 * kDown; ++m) {
      const int i = m % 2 * 2 + n % 2, in_group = place.row + row_of_sum<T>(thread, down + m / 2, i);
      if (in_group >= s.group_rows) continue;
      const int row = place.group * s.group_rows + in_group;
      store_result<kY>(f, place.chip, pixel, row, row_epilogue(f.epilogue, row), sum[m / 2][n / 2][i]);
    }
  }
}

// Result `at` in memory, in place.
template <cuda::OutType kY>
NFT_FN void epilogue_of_result(const cuda::Results& r, const cuda::Epilogue& e, int64_t at) {
  typedef typename Stored<kY>::Type Element;
  // A 64-bit division costs about a hundred instructions on a GPU.
  const int row =
      (int)(r.count <= 0xffffffffll ? (uint32_t)at / (uint32_t)r.inner % (uint32_t)r.rows : at / r.inner % r.rows);
  Element* y = (Element*)r.y + at;
  const float residual = e.residual ? loaded<kY>(((const Element*)e.residual)[at]) : 0.0f;
  *y = Stored<kY>::from(after_epilogue(e, row_epilogue(e, row), loaded<kY>(*y), residual));
}

// Whether every eight neighbouring results have eight neighbouring
// rows, or one, and an address at a multiple of 16 bytes.
NFT_FN bool epilogue_in_eights(const cuda::Results& r, const cuda::Epilogue& e) {
  const int64_t period = r.inner == 1 ? r.rows : r.inner;
  return period % 8 == 0 && r.count <= 0xffffffffll && (((uintptr_t)r.y | (uintptr_t)e.residual) & 15) == 0;
}

// Results 8 * eight .. 8 * eight + 7, in place.
template <cuda::OutType kY>
NFT_FN void epilogue_of_eight(const cuda::Results& r, const cuda::Epilogue& e, uint32_t eight) {
  typedef Eight<typename Stored<kY>::Type> Numbers;
  Numbers* const y = (Numbers*)r.y + eight;
  Numbers value = *y, residual = {};
  if (e.residual) residual = ((const Numbers*)e.residual)[eight];
  const bool one_row = r.inner != 1;
  const uint32_t first = one_row ? 8 * eight / (uint32_t)r.inner % (uint32_t)r.rows : 8 * eight % (uint32_t)r.rows;
  float sums[8];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < 8; ++i)
    sums[i] = after_epilogue(e, row_epilogue(e, (int)first + (one_row ? 0 : i)), loaded<kY>(value.v[i]),
                             loaded<kY>(residual.v[i]));
  const uint32_t no_signs[4] = {};
  store_eight<kY>((typename Stored<kY>::Type*)y, sums, no_signs);
}

}  // namespace NFT_ISA
}  // namespace nft
