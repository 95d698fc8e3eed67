// The fused product's kernels, compiled once per instruction set (the including file defines NFT_ISA). Unlike the noise these may
// fuse multiply and add: a product's rounding is the instruction set's own.
#include "multiply.h"
#include "wide.h"

namespace nft {
namespace NFT_ISA {
namespace {

// Results kept in registers: kRows x 2 vectors, with room left for two columns and a weight.
#if defined(__AVX512F__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif

NFT_FN FloatVector multiply_add(FloatVector a, FloatVector b, FloatVector c) {
#if defined(__AVX512F__)
  return (FloatVector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (FloatVector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

NFT_FN FloatVector load_vector(const float* from) {
  FloatVector v;
  memcpy(&v, from, sizeof v);
  return v;
}

void pack(const float* x, const int32_t* start, const int32_t* offset, int64_t inner, float* panel) {
  for (int64_t k = 0; k < inner; ++k) {
    const float* from = x + offset[k];
    for (int lane = 0; lane < kVector; ++lane) panel[k * kVector + lane] = from[start[lane]];
  }
}

NFT_FN void store(const Columns& c, int64_t vector, int64_t row, FloatVector sum, float* y) {
  const int64_t first = vector * kVector;
  float* out = y + row * c.row_stride;
  if (c.together && first + kVector <= c.count) {
    memcpy(out + c.to[first], &sum, sizeof sum);
    return;
  }
  for (int lane = 0; lane < kVector && first + lane < c.count; ++lane) out[c.to[first + lane]] = sum[lane];
}

// kRows rows times kVectors vectors of columns from `vector` on.
template <int kVectors>
NFT_FN void tile(const float* __restrict w, int64_t row, int64_t rows, const Columns& c, int64_t vector, const float* bias, float* y) {
  FloatVector sum[kRows][kVectors] = {};
  const float* from[kVectors];
  for (int v = 0; v < kVectors; ++v) from[v] = c.from + c.start[vector + v];
  const int64_t stride = c.inner;
  const float* quad[kRows / 4];  // first rows of four: few enough pointers to stay in registers
  for (int q = 0; q < kRows / 4; ++q) quad[q] = w + 4 * q * stride;
  const int32_t* const end = c.offset + c.inner;
  for (const int32_t* at = c.offset; at < end; ++at) {
    const int64_t offset = *at;
    FloatVector x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) x[v] = load_vector(from[v] + offset);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const FloatVector weight = quad[r / 4][r % 4 * stride] - FloatVector{};  // a broadcast: x - 0 is x, also for -0
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(weight, x[v], sum[r][v]);
    }
#pragma GCC unroll 2
    for (int q = 0; q < kRows / 4; ++q) {
      ++quad[q];
      asm("" : "+r"(quad[q]));  // keeps the compiler from making eight pointers of two after all
    }
  }
  for (int r = 0; r < kRows && row + r < rows; ++r)
    for (int v = 0; v < kVectors; ++v)
      store(c, vector + v, row + r, bias ? sum[r][v] + bias[row + r] : sum[r][v], y);
}

void rows_times_columns(const float* w, int64_t rows, const Columns& c, const float* bias, float* y) {
  const int64_t vectors = (c.count + kVector - 1) / kVector;
  int64_t vector = 0;
  for (; vector + 2 <= vectors; vector += 2)
    for (int64_t row = 0; row < rows; row += kRows) tile<2>(w + row * c.inner, row, rows, c, vector, bias, y);
  for (; vector < vectors; ++vector)
    for (int64_t row = 0; row < rows; row += kRows) tile<1>(w + row * c.inner, row, rows, c, vector, bias, y);
}

}  // namespace

#define NFT_TEXT_(x) #x
#define NFT_TEXT(x) NFT_TEXT_(x)
extern const Multiply multiply_table;
const Multiply multiply_table = {NFT_TEXT(NFT_ISA), kVector, kRows, pack, rows_times_columns};

}  // namespace NFT_ISA
}  // namespace nft
