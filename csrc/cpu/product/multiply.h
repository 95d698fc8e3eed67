// Rows of freshly programmed weights times columns of an input:
// the kernels of the one-pass product, behind plain pointers.
//
// A convolution (or a linear layer, a convolution of single pixels) is y[r, c] = sum_k W[r, k] x[start[c] + offset[k]]:
// column c is an output pixel, k an input channel and a place under the kernel. The input x is padded with zeros, so
// that no bound needs a check. The kernels take `lanes` columns at a time. If neighbouring columns are neighbours in x
// (stride 1), vectors are loaded from x; else the columns are gathered once into panels [k][lanes].
#pragma once

#include <stdint.h>

#include "cpu/sampler/sampler.h"

namespace nft {

// The columns that one chip sees.
struct Columns {
  int64_t inner;          // K: products per result
  int64_t count;          // columns
  const float* from;      // x, or panels
  const int32_t* start;   // [ceil(count / lanes)] where the first column of each vector starts
  const int32_t* offset;  // [inner]
  const int32_t* to;      // [count] where each column's result goes, without its row's offset
  int64_t row_stride;     // from row to row of the results
  bool side_by_side;      // results of a vector's columns are contiguous
};

// What happens to a sum before it is stored, in this order. Null: skipped. Every operation is rounded by itself.
struct EpiloguePointers {
  const float* bias;     // [rows]
  const float* scale;    // [rows]
  const float* shift;    // [rows]
  const void* residual;  // one number per result, in the results' layout
  bool relu;             // NaN passes
};

struct Multiply {
  const char* name;
  int lanes;  // columns per vector
  int rows;   // rows at once. A band should have a multiple of these; of twice as many, if one vector holds all columns
  // One vector's columns, starting at start [lanes] of x, into a panel [inner][lanes].
  void (*pack)(const float* x, const int32_t* start, const int32_t* offset, int64_t inner, float* panel);
  // y[r, c] = epilogue(sum_k w[r, k] x[c, k]) for rows [0, rows) and all columns;
  // w has memory for a multiple of twice Multiply::rows rows. Each result sums k
  // in ascending order: the same bits for any number of rows, columns and threads.
  void (*rows_times_columns)(const float* w, int64_t rows, const Columns& columns, const EpiloguePointers& epilogue,
                             float* y);
  // The same epilogue on results that are in memory: elements [begin, end) of y [outer, rows, inner], of type `type`.
  void (*epilogue)(const EpiloguePointers& epilogue, OutType type, int64_t rows, int64_t inner, int64_t begin,
                   int64_t end, void* y);
};

// The kernels of a sampler's instruction set.
const Multiply& multiply_of(const Kernels& sampler);

}  // namespace nft
