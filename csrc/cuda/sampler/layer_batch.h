// A batch of layers in one launch: how the thread blocks of one grid share the layers' weights, on host and device.
//
// The layers lie end to end, cut into strips of 128 weights. A warp programs one strip at once. Every thread block gets
// an equal, contiguous share of all strips. It finds the layer of its first strip by bisection and continues there. So
// all threads of a block are always in the same layer. None diverges, and the block copies each layer's table to shared
// memory once.
//
// The list of layers is a kernel argument (at most 4 KB on every GPU and toolkit). So nothing is copied to the GPU, no
// memory has to outlive the launch, and a CUDA graph keeps the list with the launch.
#pragma once

#include "cuda/sampler/four_weights.h"

namespace nft {
namespace cuda {

// The fields of a Program (four_weights.h) that differ between the layers of a launch.
struct Layer {
  const void* source;  // codes, or weights if code_bytes is 0
  const float* step;
  const float* table;
  const float* scale;
  void* out;
  int64_t n;
  int64_t end;  // strips of all layers up to and including this one
  uint32_t stream;
  uint16_t channels, taps;
  uint8_t code_bytes, weight_bits, device_bits, mapping;
};

// The layers of one launch. Every thread block gets `each` strips, and the first `more` thread blocks get one more.
template <int kMost>
struct Batch {
  const int64_t* keys;
  int64_t chips, each, more;
  int count, table_bytes;  // of the largest table
  Layer layer[kMost];
};

constexpr int kMostLayers = 56;
static_assert(sizeof(Batch<kMostLayers>) + sizeof(void*) <= 4096,
              "a batch and a pointer must fit a kernel's arguments");

// What the layers of one launch have in common.
struct Kind {
  int path;
  OutType out_type;
  bool table_in_shared;
  bool channels_last;
  bool scaled;  // stored channels last, with each output's weights multiplied by a number
};

inline bool operator==(const Kind& a, const Kind& b) {
  return a.path == b.path && a.out_type == b.out_type && a.table_in_shared == b.table_in_shared &&
         a.channels_last == b.channels_last && a.scaled == b.scaled;
}

}  // namespace cuda

namespace NFT_ISA {

constexpr int kStrip = 32;  // quads per strip

NFT_FN int64_t strips_of(int64_t n) { return (quads_of(n) + kStrip - 1) / kStrip; }

// Tables that do not fit shared memory (13 weight bits and more on the fast path) are read where they are.
NFT_FN cuda::Kind kind_of(const cuda::Program& p) {
  return {p.path, p.out_type, p.path != kPathOff && table_bytes(p) <= kSharedTableBytes, p.taps > 1,
          p.taps > 1 && p.scale};
}

template <int kMost>
NFT_FN int64_t strips_of(const cuda::Batch<kMost>& batch) {
  return batch.count ? batch.layer[batch.count - 1].end : 0;
}

// Appends a layer. The first one sets the chips.
template <int kMost>
NFT_FN void append(cuda::Batch<kMost>& batch, const cuda::Program& p) {
  cuda::Layer& l = batch.layer[batch.count];
  l.source = p.codes ? p.codes : p.weight;
  l.code_bytes = (uint8_t)(p.codes ? p.code_bytes : 0);
  l.step = p.step;
  l.table = p.table;
  l.scale = p.scale;
  l.out = p.out;
  l.n = p.n;
  l.end = strips_of(batch) + strips_of(p.n);
  l.stream = p.stream;
  l.channels = (uint16_t)p.channels;
  l.taps = (uint16_t)p.taps;
  l.weight_bits = (uint8_t)p.weight_bits;
  l.device_bits = (uint8_t)p.device_bits;
  l.mapping = (uint8_t)p.mapping;
  if (batch.count++ == 0) {
    batch.keys = p.keys;
    batch.chips = p.chips;
    batch.table_bytes = 0;
  }
  batch.table_bytes = batch.table_bytes < table_bytes(p) ? table_bytes(p) : batch.table_bytes;
}

// Layer `l` as a Program again. Path and output type are the kernel's own.
template <int kPath, cuda::OutType kOut, int kMost>
NFT_FN cuda::Program program_in(const cuda::Batch<kMost>& batch, int l) {
  const cuda::Layer& layer = batch.layer[l];
  cuda::Program p;
  p.weight = (const float*)layer.source;
  p.codes = layer.code_bytes ? layer.source : nullptr;
  p.code_bytes = layer.code_bytes;
  p.n = layer.n;
  p.step = layer.step;
  p.weight_bits = layer.weight_bits;
  p.device_bits = layer.device_bits;
  p.path = kPath;
  p.mapping = layer.mapping;
  p.table = layer.table;
  p.keys = batch.keys;
  p.chips = batch.chips;
  p.stream = layer.stream;
  p.channels = layer.channels;
  p.taps = layer.taps;
  p.out_type = kOut;
  p.out = layer.out;
  p.scale = layer.scale;
  return p;
}

// Appends the chosen programs of a list, and calls launch(batch) for
// every full batch and for the rest. launch returns 0 or an error.
template <class Chosen, class Launch>
auto in_batches(const cuda::Program* programs, int count, const Chosen& chosen, const Launch& launch) {
  cuda::Batch<cuda::kMostLayers> batch;
  batch.count = 0;
  decltype(launch(batch)) error = {};
  for (int i = 0; i < count && !error; ++i) {
    if (!chosen(programs[i])) continue;
    append(batch, programs[i]);
    if (batch.count < cuda::kMostLayers) continue;
    error = launch(batch);
    batch.count = 0;
  }
  return batch.count > 0 && !error ? launch(batch) : error;
}

// The same for all programs that have weights, one kind after the other: launch(kind, batch).
template <class Launch>
auto in_batches_per_kind(const cuda::Program* programs, int count, const Launch& launch) {
  decltype(launch(cuda::Kind(), *(cuda::Batch<cuda::kMostLayers>*)nullptr)) error = {};
  for (int i = 0; i < count && !error; ++i) {
    const cuda::Kind kind = kind_of(programs[i]);
    bool done = false;
    for (int before = 0; before < i; ++before) done = done || kind_of(programs[before]) == kind;
    if (done) continue;
    error = in_batches(
        programs + i, count - i, [&](const cuda::Program& p) { return p.n > 0 && kind_of(p) == kind; },
        [&](cuda::Batch<cuda::kMostLayers>& batch) { return launch(kind, batch); });
  }
  return error;
}

struct Range {
  int64_t begin, end;
};

// Sets the shares of `parts` thread blocks.
template <int kMost>
NFT_FN void set_shares(cuda::Batch<kMost>& batch, int64_t parts) {
  batch.each = strips_of(batch) / parts;
  batch.more = strips_of(batch) % parts;
}

// The strips of thread block `part`.
template <int kMost>
NFT_FN Range share_of(const cuda::Batch<kMost>& batch, int64_t part) {
  const int64_t begin = part * batch.each + (part < batch.more ? part : batch.more);
  return {begin, begin + batch.each + (part < batch.more)};
}

// The layer of a strip: the first layer that ends after it.
template <int kMost>
NFT_FN int layer_of(const cuda::Batch<kMost>& batch, int64_t strip) {
  int low = 0, high = batch.count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (batch.layer[middle].end > strip)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Whether a share that begins before layer `l` reaches it.
template <int kMost>
NFT_FN bool reaches(const cuda::Batch<kMost>& batch, const Range& share, int l) {
  return l < batch.count && share.begin < share.end && (l == 0 || batch.layer[l - 1].end < share.end);
}

// The part of a share in layer `l`, as quads of that layer.
template <int kMost>
NFT_FN Range quads_in(const cuda::Batch<kMost>& batch, const Range& share, int l) {
  const cuda::Layer& layer = batch.layer[l];
  const int64_t start = l ? batch.layer[l - 1].end : 0;
  const int64_t first = share.begin > start ? share.begin : start, last = share.end < layer.end ? share.end : layer.end;
  const int64_t end = (last - start) * kStrip;
  return {(first - start) * kStrip, end < quads_of(layer.n) ? end : quads_of(layer.n)};
}

}  // namespace NFT_ISA
}  // namespace nft
