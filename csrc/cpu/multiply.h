// Rows of freshly programmed weights times columns of an input: the kernels of the fused product, behind plain pointers.
//
// A convolution (or a linear layer, a convolution of single pixels) is y[r, c] = sum_k W[r, k] x[start[c] + offset[k]]: column c
// is an output pixel, k an input channel and a place under the kernel, and x an input padded with zeros, so that no bound is
// ever checked. Columns are served `lanes` at a time. Where neighbouring columns are neighbours in x too (stride 1), vectors
// are loaded straight from x; else they are gathered once into panels [k][lanes].
#pragma once

#include <stdint.h>

#include "sampler.h"

namespace nft {

// The columns that one chip sees.
struct Columns {
  int64_t inner;           // K: products a result
  int64_t count;           // columns
  const float* from;       // x, or panels
  const int32_t* start;    // [ceil(count / lanes)] where the first column of each vector starts
  const int32_t* offset;   // [inner]
  const int32_t* to;       // [count] where each column's result goes, less its row's part
  int64_t row_stride;      // from row to row of the results
  bool together;           // results of a vector's columns lie side by side
};

// What happens to a sum before it is stored, in this order; null: left out. Every operation is rounded by itself.
struct Finish {
  const float* bias;       // [rows]
  const float* scale;      // [rows]
  const float* shift;      // [rows]
  const void* residual;    // one number a result, where the result lies
  bool relu;               // NaN passes
};

struct Multiply {
  const char* name;
  int lanes;   // columns a vector
  int rows;    // rows served together: a block's rows should be a multiple, where one vector holds all columns of twice as many
  // One vector's columns, starting at start [lanes] of x, into a panel [inner][lanes].
  void (*pack)(const float* x, const int32_t* start, const int32_t* offset, int64_t inner, float* panel);
  // y[r, c] = finish(sum_k w[r, k] x[c, k]) for rows [0, rows) and all columns; w has memory for a multiple of twice
  // Multiply::rows rows. Each result sums k in ascending order: the same bits for any number of rows, columns and threads.
  void (*rows_times_columns)(const float* w, int64_t rows, const Columns& columns, const Finish& finish, float* y);
  // The same epilogue on results that are in memory: elements [begin, end) of y [outer, rows, inner], of type `type`.
  void (*finish)(const Finish& finish, OutType type, int64_t rows, int64_t inner, int64_t begin, int64_t end, void* y);
};

// Those of the same instruction set as a sampler's kernels.
const Multiply& multiply_of(const Kernels& sampler);

}  // namespace nft
