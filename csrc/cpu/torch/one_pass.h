// The one-pass product: each thread programs a band of rows into its own cache and multiplies it at once with the
// input's columns. Noisy weights never reach memory, and the product needs no copy of them in another layout.
//
// It pays for few images, while the input fits the cache beside a band (OnePassProduct::worth). For more images torch's
// product, on weights that are programmed once, is faster.
#pragma once

#include <stdlib.h>

#include "cpu/torch/epilogue.h"
#include "core/convolution_size.h"
#include "cpu/product/convolution_window.h"
#include "cpu/torch/pool_tensor.h"
#include "cpu/torch/program.h"

namespace nft {

// Floats of one thread, kept for its next band.
class ThreadMemory {
 public:
  static float* of(size_t count) {
    static thread_local ThreadMemory own;
    if (count > own.count_) {
      free(own.memory_);
      own.count_ = (count + 1023) / 1024 * 1024;
      own.memory_ = static_cast<float*>(aligned_alloc(4096, own.count_ * sizeof(float)));
      if (!own.memory_) {
        own.count_ = 0;
        throw std::bad_alloc();
      }
      memset(own.memory_, 0,
             own.count_ * sizeof(float));  // rows past the last are multiplied too, and their results dropped
    }
    return own.memory_;
  }
  ~ThreadMemory() { free(memory_); }

 private:
  float* memory_ = nullptr;
  size_t count_ = 0;
};

inline Window window_of(const Tensor& x, const Tensor& weight, const aten::Convolution& p, int64_t images) {
  Window w;
  w.images = images;
  w.channels = x.size(1);
  w.height = x.dim() == 4 ? x.size(2) : 1;
  w.width = x.dim() == 4 ? x.size(3) : 1;
  w.rows = weight.size(0);
  w.groups = p.groups;
  for (int i = 0; i < 2; ++i) {
    w.kernel[i] = weight.dim() == 4 ? weight.size(2 + i) : 1;
    w.stride[i] = p.stride[i];
    w.padding[i] = p.padding[i];
    w.dilation[i] = p.dilation[i];
    w.out[i] = generic::convolution_size(i ? w.width : w.height, w.kernel[i], w.stride[i], w.padding[i], w.dilation[i]);
  }
  return w;
}

class OnePassProduct {
 public:
  OnePassProduct(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias, const Epilogue& epilogue,
                 const Window& window, bool shared)
      : c_(c),
        x_(x),
        w_(window),
        order_(window.order(kernel_.lanes)),
        shared_(shared || c.chips() == 1),
        places_{window, order_ == Order::kImages, shared_ ? window.images : window.images * c.chips()},
        channels_last_(aten::is_channels_last(x)),
        holder_(c.weight),
        epilogue_(epilogue),
        bias_(bias) {
    x_data_ = floats(x);
    for (int i = 0; i < x.dim(); ++i) x_stride_[i] = x.stride(i);
  }

  // The bounds were timed against sampler and torch's product: docs/design/decisions/cpu.md.
  bool worth() const {
    if (w_.rows * w_.inner() < kFewWeights && w_.columns() > (w_.pixels() == 1 ? kMostRows : kMostPixels)) return false;
    if (order_ == Order::kPanels) return w_.columns() * w_.inner() * w_.groups <= kCacheFloats;
    return w_.images * w_.channels * w_.plane() <= kCacheFloats / 2;
  }

  // Whether 32-bit offsets reach every element, and a group has enough rows for a band. In doubles: sizes may overflow.
  static bool possible(const Window& w, int64_t chips, bool shared, int lanes, int rows) {
    const double most = 0x1p31, seen = shared ? 1 : (double)chips, images = (double)w.images,
                 columns = images * (double)w.pixels(), vectors = columns / lanes + 1;
    const bool some = w.out[0] > 0 && w.out[1] > 0 && w.images > 0 && w.inner() > 0 && w.group_rows() >= rows;
    return some && seen * images * (double)w.channels * (double)w.plane() < most && columns * (double)w.rows < most &&
           seen * (double)w.groups * vectors * (double)w.inner() * lanes < most / 4;
  }

  Tensor run() {
    Ints sizes{c_.chips() * w_.images, w_.rows};
    if (x_.dim() == 4) sizes.insert(sizes.end(), {w_.out[0], w_.out[1]});
    Tensor y =
        channels_last_ ? aten::empty(sizes, ScalarType::Float, x_, true) : pool_tensor(sizes, ScalarType::Float, x_);
    y_ = static_cast<float*>(y.data_ptr());
    pointers_ = epilogue_pointers(bias_, epilogue_, channels_last_);

    Program program = program_of(c_, holder_);
    program.chips = 1;  // at a time
    std::vector<Phase> phases;
    prepare_input(phases);
    prepare_columns(phases);
    run_finding_steps(c_, program, w_.groups * bands(), [&](std::vector<Phase> first, AbsMax* abs_max) {
      first.insert(first.end(), phases.begin(), phases.end());
      first.push_back(rows(program, abs_max));
      run_phases(first, on_this_thread());
      phases.clear();  // a second call finds the input prepared
    });
    return y;
  }

 private:
  static constexpr int64_t kFewWeights = 1 << 13;   // so few do not pay for gathering more than
  static constexpr int64_t kMostRows = 1 << 6;      // these columns of a linear layer, which torch starts quickly, or
  static constexpr int64_t kMostPixels = 1 << 13;   // these of a convolution, which torch starts slowly
  static constexpr int64_t kOneThread = 1 << 13;    // weights, or 64 multiplications each: some ten microseconds
  static constexpr int64_t kCacheFloats = 1 << 18;  // a megabyte: half of a second-level cache

  bool on_this_thread() const { return (w_.inner() + w_.columns() * w_.inner() / 64) * w_.rows < kOneThread; }
  int64_t chips_of_input() const { return shared_ ? 1 : c_.chips(); }
  int64_t vectors() const { return (w_.columns() + kernel_.lanes - 1) / kernel_.lanes; }
  int64_t panel_floats() const {
    return order_ == Order::kPanels ? chips_of_input() * w_.groups * vectors() * w_.inner() * kernel_.lanes : 0;
  }

  // What the products of one chip read.
  int64_t input_floats() const {
    return order_ == Order::kPanels ? w_.columns() * w_.inner() * w_.groups : w_.images * w_.channels * w_.plane();
  }

  int64_t part_of_input(int64_t chip, int64_t group) const {
    return chip * w_.images * places_.image() + group * w_.group_channels() * places_.channel();
  }

  // The input as the columns read it: x itself if its layout serves, else a padded copy.
  void prepare_input(std::vector<Phase>& phases) {
    if (w_.padding[0] == 0 && w_.padding[1] == 0 && order_ != Order::kImages && x_.is_contiguous()) {
      input_ = x_data_;
      return;
    }
    padded_ = pool_tensor({places_.size()}, ScalarType::Float, x_);
    input_ = floats(*padded_);
    phases.push_back(
        Phase::tiles(w_.channels, std::max<int64_t>(1, w_.channels / 16), [this](int64_t begin, int64_t end) {
          for (int64_t channel = begin; channel < end; ++channel) copy_channel(channel);
        }));
  }

  void copy_channel(int64_t channel) const {
    float* out = const_cast<float*>(input_) + channel * places_.channel();
    const float* in = x_data_ + channel * x_stride_[1];
    const int64_t width = w_.padded(1), sn = x_stride_[0], sy = x_stride_[2], sx = x_stride_[3];
    if (places_.images_last) {
      for (int64_t n = 0; n < places_.copies; ++n) out[n] = in[n * sn];
      return;
    }
    for (int64_t n = 0; n < places_.copies; ++n) {
      float* image = out + n * places_.image();
      if (w_.padding[0] || w_.padding[1]) memset(image, 0, (size_t)w_.plane() * sizeof(float));
      image += w_.padding[0] * width + w_.padding[1];
      for (int64_t y = 0; y < w_.height; ++y) {
        const float* row = in + n * sn + y * sy;
        if (sx == 1)
          memcpy(image + y * width, row, (size_t)w_.width * sizeof(float));
        else
          for (int64_t x = 0; x < w_.width; ++x) image[y * width + x] = row[x * sx];
      }
    }
  }

  void prepare_columns(std::vector<Phase>& phases) {
    const int64_t count = w_.columns(), lanes = kernel_.lanes;
    std::vector<int32_t> starts((size_t)(vectors() * lanes));
    result_.resize((size_t)count);
    places_.each_column(channels_last_, [&](int64_t column, int64_t start, int64_t result) {
      starts[(size_t)column] = (int32_t)start;
      result_[(size_t)column] = (int32_t)result;
    });
    std::fill(starts.begin() + count, starts.end(), starts[(size_t)(count - 1)]);  // read, never written
    offset_ = places_.offsets();
    start_.resize((size_t)vectors());
    if (order_ != Order::kPanels) {
      for (int64_t v = 0; v < vectors(); ++v) start_[(size_t)v] = starts[(size_t)(v * lanes)];
      from_ = input_;
      return;
    }
    panels_ = pool_tensor({panel_floats()}, ScalarType::Float, x_);
    float* panels = static_cast<float*>(panels_->data_ptr());
    from_ = panels;
    const int64_t panel = w_.inner() * lanes;
    for (int64_t v = 0; v < vectors(); ++v) start_[(size_t)v] = (int32_t)(v * panel);
    const auto gathered =
        std::make_shared<std::pair<std::vector<int32_t>, std::vector<int32_t>>>(std::move(starts), offset_);
    phases.push_back({chips_of_input() * w_.groups * vectors(), [this, panels, panel, gathered](int64_t i) {
                        const int64_t v = i % vectors(), group = i / vectors() % w_.groups,
                                      chip = i / vectors() / w_.groups;
                        kernel_.pack(input_ + part_of_input(chip, group), gathered->first.data() + v * kernel_.lanes,
                                     gathered->second.data(), w_.inner(), panels + i * panel);
                      }});
    for (int64_t k = 0; k < w_.inner(); ++k) offset_[(size_t)k] = (int32_t)(k * lanes);
  }

  // Rows of a band: few while all columns stay in the cache beside it; else as many as fit, so that the columns are
  // read less often. In both cases enough bands for all threads.
  int64_t band_rows() const {
    const int64_t bands = 2 * torch::stable::get_num_threads() / c_.chips() / w_.groups + 1;
    const int64_t step =
        vectors() == 1 && w_.group_rows() >= bands * 2 * kernel_.rows ? 2 * kernel_.rows : kernel_.rows;
    const int64_t columns =
        order_ == Order::kPanels ? w_.columns() * w_.inner() : w_.images * w_.group_channels() * w_.plane();
    const int64_t most = columns <= kCacheFloats * 3 / 4 ? step : std::min<int64_t>(kCacheFloats / w_.inner(), 64);
    return std::max(step, std::min(most, w_.group_rows() / bands) / step * step);
  }

  int64_t bands() const { return (w_.group_rows() + band_rows() - 1) / band_rows(); }  // of a group

  // The product, one band of rows per piece; `abs_max` collects max|W| on the way. Weights or input, the larger stays
  // in the cache from piece to piece: a band of weights for all chips, or a chip's input for all bands.
  Phase rows(const Program& program, AbsMax* abs_max = nullptr) const {
    const int64_t rows = band_rows(), bands = this->bands(), all = w_.groups * bands, chips = c_.chips();
    const bool by_band = program.n > chips_of_input() * input_floats();
    return {chips * all, [=, &program](int64_t i) {
              const int64_t chip = by_band ? i % chips : i / all, band = by_band ? i / chips : i % all;
              const int64_t first = band % bands * rows, group = band / bands;
              Program p = program;
              p.keys += 2 * chip;
              if (abs_max && chip == 0) p.abs_max = abs_max->part(band);
              multiply_rows(p, chip, group, group * w_.group_rows() + first, std::min(rows, w_.group_rows() - first));
            }};
  }

  void multiply_rows(Program& p, int64_t chip, int64_t group, int64_t row, int64_t rows) const {
    const int64_t inner = w_.inner(), first = row * inner / kChunk, last = ((row + rows) * inner + kChunk - 1) / kChunk;
    const int64_t at_once = 2 * kernel_.rows, multiplied = (rows + at_once - 1) / at_once * at_once * inner;
    float* band = ThreadMemory::of((size_t)((last - first) * kChunk + multiplied));
    p.out_type = OutType::kFloat32;
    p.out = band - first * kChunk;  // the sampler counts from the first weight of the layer
    kernels().program(p, first, last);

    const int64_t seen = shared_ ? 0 : chip;
    Columns columns;
    columns.inner = inner;
    columns.count = w_.columns();
    columns.from = order_ == Order::kPanels ? from_ + (seen * w_.groups + group) * vectors() * inner * kernel_.lanes
                                            : from_ + part_of_input(seen, group);
    columns.start = start_.data();
    columns.offset = offset_.data();
    columns.to = result_.data();
    columns.row_stride = channels_last_ ? 1 : w_.pixels();
    columns.side_by_side = !channels_last_ && order_ != Order::kImages && w_.pixels() % kernel_.lanes == 0;
    const int64_t start = chip * w_.images * w_.rows * w_.pixels() + row * columns.row_stride;
    EpiloguePointers pointers = pointers_;
    for (const float** p : {&pointers.bias, &pointers.scale, &pointers.shift})
      if (*p) *p += row;
    if (pointers.residual) pointers.residual = static_cast<const float*>(pointers.residual) + start;
    kernel_.rows_times_columns(band + (row * inner - first * kChunk), rows, columns, pointers, y_ + start);
  }

  Crossbar& c_;
  Tensor x_;
  Window w_;
  const Multiply& kernel_ = multiply_of(kernels());
  Order order_;
  bool shared_;
  Places places_;
  bool channels_last_;
  Tensor holder_;
  Epilogue epilogue_;
  EpiloguePointers pointers_ = {};
  std::optional<Tensor> bias_, padded_, panels_;
  const float* x_data_ = nullptr;
  int64_t x_stride_[4] = {};
  const float *input_ = nullptr, *from_ = nullptr;
  float* y_ = nullptr;
  std::vector<int32_t> start_, offset_, result_;
};

// The result; none if torch's product is faster or the shape is out of reach.
inline std::optional<Tensor> one_pass_product(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias,
                                              const aten::Convolution& p, bool shared, const Epilogue& epilogue) {
  if (x.scalar_type() != ScalarType::Float || (bias && bias->scalar_type() != ScalarType::Float)) return std::nullopt;
  const Window window = window_of(x, c.weight, p, rows_per_chip(c.op, x, c.chips(), shared));
  const Multiply& kernel = multiply_of(kernels());
  if (!OnePassProduct::possible(window, c.chips(), shared, kernel.lanes, kernel.rows)) return std::nullopt;
  OnePassProduct product(c, x, bias, epilogue, window, shared);
  return product.worth() ? std::optional<Tensor>(product.run()) : std::nullopt;
}

}  // namespace nft
