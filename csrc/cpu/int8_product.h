// The products of 8-bit numbers (core/int8.h) on the CPU, exact: numbers are kept in 16 bits, whose products every instruction set
// adds up in 32. One chip after the other: program, round, multiply.
#pragma once

#include <string.h>

#include "../core/int8.h"
#include "finish.h"
#include "program.h"
#include "recycled.h"
#include "window.h"

namespace nft {

class Int8Product {
 public:
  Int8Product(Crossbar& c, const Tensor& x, const std::optional<Tensor>& bias, const Epilogue& epilogue, const Window& window, bool shared)
      : c_(c), w_(window), shared_(shared || c.chips() == 1), channels_last_(aten::is_channels_last(x)), type_(x.scalar_type()),
        pitch_(std::max(kIntegers, (w_.inner() + kIntegers - 1) / kIntegers * kIntegers)), bias_(bias), epilogue_(epilogue),
        x_(aten::contiguous(aten::cast(x, ScalarType::Float))) {}

  // program(c, memory [*weight], chip) writes a chip's weights in float32, and finds the step.
  template <class Program>
  Tensor run(const Program& program) {
    Ints sizes{c_.chips() * w_.images, w_.rows};
    if (x_.dim() == 4) sizes.insert(sizes.end(), {w_.out[0], w_.out[1]});
    Tensor y = channels_last_ ? aten::empty(sizes, type_, x_, true) : Recycled::empty(sizes, type_, x_);
    finish_ = finish_of(bias_, epilogue_, channels_last_);
    y_ = y.data_ptr();
    round_input();
    const Tensor chip_weights = Recycled::empty(sizes_of(c_.weight), ScalarType::Float, x_);
    const Tensor memory = Recycled::empty({w_.rows, pitch_}, ScalarType::Short, x_);
    weights_ = static_cast<int16_t*>(memory.data_ptr());
    const float reach = reach_of_weights();
    for (int64_t chip = 0; chip < c_.chips(); ++chip) {
      program(c_, chip_weights, chip);
      unit_ = generic::weight_unit(step_of(c_), reach);
      const float* from = static_cast<const float*>(chip_weights.data_ptr());
      const std::vector<Phase> phases = {
          Phase::tiles(w_.rows, kRows, [=](int64_t begin, int64_t end) { round_weights(from, begin, end); }), products_of(chip)};
      deal(phases, c_.weight.numel() * (1 + w_.columns() / 64) < kAlone);
    }
    return y;
  }

 private:
  static constexpr int64_t kAlone = 1 << 13;   // weights, or 64 multiplications each: some ten microseconds
  static constexpr int64_t kRows = 64;         // of a piece of work, where tiles of columns are few
  static constexpr int64_t kTile = 1 << 16;    // numbers of a tile of columns: 128 KB, in the cache beside rows that pass by
  static constexpr int64_t kColumns = 256;     // of a tile at most

  int64_t images_of_input() const { return shared_ ? w_.images : w_.images * c_.chips(); }
  int64_t image_size() const { return w_.channels * w_.height * w_.width; }

  void round_input() {
    const Tensor memory = Recycled::empty({images_of_input(), image_size()}, ScalarType::Short, x_);
    input_.emplace(memory);
    largest_.resize((size_t)images_of_input());
    const float* from = static_cast<const float*>(x_.data_ptr());
    int16_t* to = static_cast<int16_t*>(memory.data_ptr());
    const int64_t size = image_size();
    const auto round = [=](int64_t image) {
      const uint32_t bits = kernels().abs_max_bits(from + image * size, size);
      float& largest = largest_[(size_t)image];
      largest = generic::float_of(bits);
      const float unit = generic::image_unit(largest);
      for (int64_t i = image * size; i < (image + 1) * size; ++i) to[i] = generic::to_int8(from[i], unit);
    };
    deal({{images_of_input(), round}}, images_of_input() * size < kAlone);
  }

  float reach_of_weights() const {
    const generic::Devices d = {static_cast<const float*>(c_.table.data_ptr()), (int)c_.device[0], (int)c_.device[1], (int)c_.device[2],
                                (int)c_.device[3]};
    float most = 0.0f;
    for (int q = 0; q < 1 << d.weight_bits; ++q) most = generic::most(most, generic::reach_of_code(d, q));
    return generic::reach_of_all(d, most);
  }

  void round_weights(const float* from, int64_t begin, int64_t end) const {
    const int64_t inner = w_.inner();
    for (int64_t row = begin; row < end; ++row) {
      int16_t* to = weights_ + row * pitch_;
      for (int64_t k = 0; k < inner; ++k) to[k] = generic::to_int8(from[row * inner + k], unit_);
      memset(to + inner, 0, (size_t)(pitch_ - inner) * sizeof *to);
    }
  }

  Phase products_of(int64_t chip) const {
    const int64_t across = std::max<int64_t>(1, std::min(kColumns, kTile / pitch_)), columns = w_.columns();
    const int64_t tiles = (columns + across - 1) / across;
    // Columns are gathered once for each piece.
    const int64_t rows = w_.groups * tiles >= 4 * torch::stable::get_num_threads() ? std::max<int64_t>(1, w_.group_rows()) : kRows;
    const int64_t downs = (w_.group_rows() + rows - 1) / rows;
    return {w_.groups * tiles * downs, [=](int64_t i) {
              const int64_t down = i % downs, tile = i / downs % tiles, group = i / downs / tiles;
              multiply(chip, group, down * rows, std::min(rows, w_.group_rows() - down * rows), tile * across,
                       std::min(across, columns - tile * across));
            }};
  }

  void multiply(int64_t chip, int64_t group, int64_t row, int64_t rows, int64_t first, int64_t count) const {
    static thread_local std::vector<int16_t> gathered;
    static thread_local std::vector<int32_t> sums;
    gathered.resize((size_t)(count * pitch_));
    sums.resize((size_t)(rows * count));
    for (int64_t i = 0; i < count; ++i) gather(chip, group, first + i, gathered.data() + i * pitch_);
    const int64_t from = group * w_.group_rows() + row;
    multiply_of(kernels()).integer_products(weights_ + from * pitch_, rows, gathered.data(), count, pitch_, sums.data());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t image = (first + i) / w_.pixels(), pixel = (first + i) % w_.pixels();
      const float unit = generic::mul(unit_, generic::image_unit(largest_[(size_t)(seen_by(chip) + image)]));
      for (int64_t r = 0; r < rows; ++r)
        store(chip * w_.images + image, pixel, from + r, generic::worth(sums[(size_t)(r * count + i)], unit));
    }
  }

  int64_t seen_by(int64_t chip) const { return shared_ ? 0 : chip * w_.images; }

  // What a column sees: (channel, kernel row, kernel column), zeros outside the input.
  void gather(int64_t chip, int64_t group, int64_t column, int16_t* to) const {
    const int64_t image = column / w_.pixels(), pixel = column % w_.pixels();
    const int64_t top = pixel / w_.out[1] * w_.stride[0] - w_.padding[0], left = pixel % w_.out[1] * w_.stride[1] - w_.padding[1];
    const int16_t* from = static_cast<const int16_t*>(input_->data_ptr()) + (seen_by(chip) + image) * image_size() +
                          group * w_.group_channels() * w_.height * w_.width;
    int16_t* const end = to + pitch_;
    for (int64_t c = 0; c < w_.group_channels(); ++c, from += w_.height * w_.width)
      for (int64_t ky = 0; ky < w_.kernel[0]; ++ky) {
        const int64_t y = top + ky * w_.dilation[0];
        for (int64_t kx = 0; kx < w_.kernel[1]; ++kx) {
          const int64_t x = left + kx * w_.dilation[1];
          *to++ = y >= 0 && y < w_.height && x >= 0 && x < w_.width ? from[y * w_.width + x] : int16_t(0);
        }
      }
    memset(to, 0, (size_t)(end - to) * sizeof *to);
  }

  // The epilogue, each operation rounded by itself, and one rounding to the result's type.
  void store(int64_t image, int64_t pixel, int64_t row, float value) const {
    const int64_t at = channels_last_ ? (image * w_.pixels() + pixel) * w_.rows + row : (image * w_.rows + row) * w_.pixels() + pixel;
    const bool floats = type_ == ScalarType::Float;
    if (finish_.bias) value = generic::add(value, finish_.bias[row]);
    if (finish_.scale) value = generic::mul(value, finish_.scale[row]);
    if (finish_.shift) value = generic::add(value, finish_.shift[row]);
    if (finish_.residual)
      value = generic::add(value, floats ? static_cast<const float*>(finish_.residual)[at]
                                         : generic::float_of((uint32_t)static_cast<const uint16_t*>(finish_.residual)[at] << 16));
    if (finish_.relu && value < 0.0f) value = 0.0f;
    if (floats) static_cast<float*>(y_)[at] = value;
    else static_cast<uint16_t*>(y_)[at] = generic::to_bfloat16(value);
  }

  Crossbar& c_;
  Window w_;
  bool shared_, channels_last_;
  ScalarType type_;
  int64_t pitch_;  // of a row of weights, and of a column
  std::optional<Tensor> bias_;
  Epilogue epilogue_;
  Tensor x_;
  std::optional<Tensor> input_;
  std::vector<float> largest_;  // of each image
  float unit_ = 0.0f;           // of the weights
  int16_t* weights_ = nullptr;
  Finish finish_ = {};
  void* y_ = nullptr;
};

}  // namespace nft
