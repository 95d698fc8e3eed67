// The kernels of the one-pass product, compiled once per instruction set (the including file defines NFT_ISA). Unlike
// the noise these use fma: a product's rounding may differ between instruction sets.
#include "cpu/product/multiply.h"
#include "cpu/simd/vectors.h"

namespace nft {
namespace NFT_ISA {
namespace {

// Sums in registers: kRows x 2 vectors, with room for two columns and a weight, or 2 kRows x 1. Fewer sums would wait:
// a sum can take its next product after four or five cycles, and the processor starts two products per cycle.
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

NFT_FN FloatVector positive_part(FloatVector a) { return a < FloatVector{} ? FloatVector{} : a; }

// Stores a vector's results of one row. What was not given is not added or multiplied: x + 0 would turn -0 into +0.
NFT_FN void store(const Columns& c, int64_t vector, int64_t row, FloatVector sum, const EpiloguePointers& f, float* y) {
  const int64_t first = vector * kVector, lanes = c.count - first < kVector ? c.count - first : kVector;
  const bool whole = c.side_by_side && lanes == kVector;
  float* out = y + row * c.row_stride;
  if (f.bias) sum = sum + f.bias[row];
  if (f.scale) sum = sum * f.scale[row];
  if (f.shift) sum = sum + f.shift[row];
  if (f.residual) {
    const float* from = (const float*)f.residual + row * c.row_stride;
    FloatVector residual = {};
    if (whole)
      residual = load_vector(from + c.to[first]);
    else
      for (int lane = 0; lane < lanes; ++lane) residual[lane] = from[c.to[first + lane]];
    sum = sum + residual;
  }
  if (f.relu) sum = positive_part(sum);
  if (whole) {
    memcpy(out + c.to[first], &sum, sizeof sum);
    return;
  }
  for (int lane = 0; lane < lanes; ++lane) out[c.to[first + lane]] = sum[lane];
}

// kDown rows times kVectors vectors of columns from `vector` on.
template <int kDown, int kVectors>
NFT_FN void tile(const float* __restrict w, int64_t row, int64_t rows, const Columns& c, int64_t vector,
                 const EpiloguePointers& f, float* y) {
  FloatVector sum[kDown][kVectors] = {};
  const float* from[kVectors];
  for (int v = 0; v < kVectors; ++v) from[v] = c.from + c.start[vector + v];
  const int64_t stride = c.inner;
  const float* quad[kDown / 4];  // one pointer per four rows, so that all stay in registers
  for (int q = 0; q < kDown / 4; ++q) quad[q] = w + 4 * q * stride;
  const int32_t* const end = c.offset + c.inner;
  for (const int32_t* at = c.offset; at < end; ++at) {
    const int64_t offset = *at;
    FloatVector x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) x[v] = load_vector(from[v] + offset);
#pragma GCC unroll 16
    for (int r = 0; r < kDown; ++r) {
      const FloatVector weight = quad[r / 4][r % 4 * stride] - FloatVector{};  // a broadcast: x - 0 is x, also for -0
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(weight, x[v], sum[r][v]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < kDown / 4; ++q) {
      ++quad[q];
      asm("" : "+r"(quad[q]));  // otherwise the compiler makes eight pointers of two
    }
  }
  FloatVector done[kDown][kVectors];  // a copy, so that the sums stay in registers whatever the loop below does
  memcpy(done, sum, sizeof done);
  for (int r = 0; r < kDown && row + r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) store(c, vector + v, row + r, done[r][v], f, y);
}

void rows_times_columns(const float* w, int64_t rows, const Columns& c, const EpiloguePointers& f, float* y) {
  const int64_t vectors = (c.count + kVector - 1) / kVector;
  int64_t vector = 0;
  for (; vector + 2 <= vectors; vector += 2)
    for (int64_t row = 0; row < rows; row += kRows) tile<kRows, 2>(w + row * c.inner, row, rows, c, vector, f, y);
  if (vector == vectors) return;
  int64_t row = 0;
  for (; row + kRows < rows; row += 2 * kRows) tile<2 * kRows, 1>(w + row * c.inner, row, rows, c, vector, f, y);
  if (row < rows) tile<kRows, 1>(w + row * c.inner, row, rows, c, vector, f, y);
}

// Loads and stores the first `count` (1 .. kVector) numbers at p as float32, with zeros after them. For whole vectors
// `count` should be a constant, or the compiler calls memcpy.
NFT_FN FloatVector load_some(const float* p, int64_t count) {
  FloatVector v = {};
  memcpy(&v, p, (size_t)count * sizeof(float));
  return v;
}

typedef uint16_t HalfVector __attribute__((vector_size(2 * kVector)));

NFT_FN FloatVector load_some(const uint16_t* p, int64_t count) {
  HalfVector v = {};
  memcpy(&v, p, (size_t)count * sizeof(uint16_t));
  return (FloatVector)(__builtin_convertvector(v, WordVector) << 16);
}

NFT_FN void store_some(float* p, int64_t count, FloatVector a) { memcpy(p, &a, (size_t)count * sizeof(float)); }

// to_bfloat16 of core/macros.h on a vector.
NFT_FN void store_some(uint16_t* p, int64_t count, FloatVector a) {
  const WordVector u = (WordVector)a, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const WordVector bits = a == a ? rounded : WordVector{} + 0x7fc0u;
  const HalfVector v = __builtin_convertvector(bits, HalfVector);
  memcpy(p, &v, (size_t)count * sizeof(uint16_t));
}

// `count` neighbouring results, of one row (kAlong false) or of successive rows.
template <bool kAlong, class T>
NFT_FN void epilogue_some(const EpiloguePointers& f, int64_t row, int64_t count, T* y, const T* residual) {
  const auto constant = [=](const float* p) { return kAlong ? load_some(p + row, count) : p[row] - FloatVector{}; };
  FloatVector a = load_some(y, count);
  if (f.bias) a = a + constant(f.bias);
  if (f.scale) a = a * constant(f.scale);
  if (f.shift) a = a + constant(f.shift);
  if (residual) a = a + load_some(residual, count);
  if (f.relu) a = positive_part(a);
  store_some(y, count, a);
}

// The same for n results.
template <bool kAlong, class T>
NFT_FN void epilogue_span(const EpiloguePointers& f, int64_t row, int64_t n, T* y, const T* residual) {
  int64_t i = 0;
  for (; i + kVector <= n; i += kVector)
    epilogue_some<kAlong>(f, kAlong ? row + i : row, kVector, y + i, residual ? residual + i : nullptr);
  if (i < n) epilogue_some<kAlong>(f, kAlong ? row + i : row, n - i, y + i, residual ? residual + i : nullptr);
}

template <class T>
void epilogue_typed(const EpiloguePointers& f, int64_t rows, int64_t inner, int64_t begin, int64_t end, T* y) {
  const T* residual = (const T*)f.residual;
  const int64_t side = inner == 1 ? rows : inner;  // neighbouring results per span
  for (int64_t at = begin; at < end;) {
    const int64_t plane = at / side, stop = (plane + 1) * side < end ? (plane + 1) * side : end;
    if (inner == 1)
      epilogue_span<true>(f, at - plane * side, stop - at, y + at, residual ? residual + at : nullptr);
    else
      epilogue_span<false>(f, plane % rows, stop - at, y + at, residual ? residual + at : nullptr);
    at = stop;
  }
}

void epilogue(const EpiloguePointers& f, OutType type, int64_t rows, int64_t inner, int64_t begin, int64_t end,
              void* y) {
  if (type == OutType::kFloat32)
    epilogue_typed(f, rows, inner, begin, end, (float*)y);
  else
    epilogue_typed(f, rows, inner, begin, end, (uint16_t*)y);
}

}  // namespace

#define NFT_TEXT_(x) #x
#define NFT_TEXT(x) NFT_TEXT_(x)
extern const Multiply multiply_table;
const Multiply multiply_table = {NFT_TEXT(NFT_ISA), kVector, kRows, pack, rows_times_columns, epilogue};

}  // namespace NFT_ISA
}  // namespace nft
