// The index arithmetic of the one-pass kernel by itself (csrc/cuda/one_pass/shape.h, tile.h): every element of a tile,
// of a fragment and of the result has exactly one place and one owner, at every size that a test can count out, and no
// two lanes that read a fragment meet in a bank of shared memory. The products made with it: test_one_pass.cpp.
#include <vector>

#include "cuda/one_pass/tile.h"
#include "tests/cuda/one_pass_case.h"

using namespace nft::generic;
using nft::cuda::OnePassProduct;
using nft::cuda::OutType;
using nft_test::expect;
using nft_test::shape;

namespace {

// Every element of a step's weight tile comes from one slot, which names the right weight.
template <class T>
void slots_cover_the_tile() {
  for (int inner = 1; inner <= 2 * T::kInner + 3; ++inner) {
    const Sizes s = {T::kRows + 3, inner, inner, 1, 1, false};
    for (const Place& place : {Place{0, 0, 0, 0}, Place{1, 2, T::kRows, 0}})
      for (int step = 0; step * T::kInner < inner; ++step) {
        std::vector<int> times((size_t)(T::kRows * T::kInner), 0);
        for (int n = 0; n < T::kRows * slots_of_row<T>(inner); ++n) {
          const Slot to = slot_of<T>(s, place, step, n);
          for (int i = 0; i < 4; ++i) {
            const int k = to.first + i;
            if (k < 0 || k >= T::kInner) continue;
            ++times[(size_t)(to.row * T::kInner + k)];
            const int64_t row = place.group * s.group_rows + place.row + to.row;
            const bool exists = place.row + to.row < s.group_rows && step * T::kInner + k < inner;
            expect(4 * to.quad + i == row * inner + step * T::kInner + k && exists == (k < to.valid) &&
                       (!exists || is_used<T>(to)),
                   "inner %d, step %d, slot %d, element %d", inner, step, n, i);
          }
        }
        for (int t : times) expect(t == 1, "inner %d, step %d: an element is written %d times", inner, step, t);
      }
  }
}

// All numbers of a tile's result and of the fragments are held once; no two lanes read different words of one bank.
template <class T>
void fragments_cover_the_tile() {
  std::vector<int> sums((size_t)(T::kRows * T::kColumns), 0), parts((size_t)(T::kColumns * T::kInner), 0);
  for (int thread = 0; thread < T::kThreads; ++thread) {
    for (int n = 0; n < 4 * T::kDown * T::kAcross; ++n)
      ++sums[(size_t)(row_of_sum<T>(thread, n / 4 / T::kAcross, n % 4) * T::kColumns +
                      column_of_sum<T>(thread, n / 4 % T::kAcross, n % 4))];
    for (int i = 0; i < T::kPart; ++i)
      ++parts[(size_t)(column_of_thread<T>(thread) * T::kInner + part_of_thread<T>(thread) + i)];
  }
  for (int t : sums) expect(t == 1, "a result is held %d times", t);
  for (int t : parts) expect(t == 1, "an input is gathered %d times", t);
  for (int i = 0; i < 4; ++i) {
    uint32_t a = 0, b = 0;
    for (int lane = 0; lane < 32; ++lane) {
      a |= 1u << (spot_of_a(lane, i).line * T::kPitch / T::kPerWord + spot_of_a(lane, i).word) % 32;
      b |= 1u << (spot_of_b(lane, i % 2).line * T::kPitch / T::kPerWord + spot_of_b(lane, i % 2).word) % 32;
    }
    expect(a == ~0u && b == ~0u, "banks of register %d: %08x %08x", i, a, b);
  }
}

template <class T>
void tile_indices() {
  slots_cover_the_tile<T>();
  fragments_cover_the_tile<T>();
}

// Each chip, group, row and column belongs to one tile.
void tiles_cover_the_result() {
  for (int rows : {1, 16, 17, 40})
    for (int64_t columns : {1, 32, 33, 100}) {
      OnePassProduct f = shape(columns, 1, 1, 1, rows, 3, 1, 0, 0, 0);
      f.program.chips = 2;
      const Sizes s = sizes_of(f);
      const Tiling tiling = tiling_of(f, s, 16, 32);
      std::vector<int> times((size_t)(2 * 3 * rows * columns), 0);
      for (int64_t tile = 0; tile < tiling.count; ++tile) {
        const Place p = place_of(f, tiling, tile);
        for (int r = p.row; r < p.row + 16 && r < rows; ++r)
          for (int64_t c = p.column; c < p.column + 32 && c < columns; ++c)
            ++times[(size_t)(((p.chip * 3 + p.group) * rows + r) * columns + c)];
      }
      for (int t : times) expect(t == 1, "%d rows, %d columns: a result belongs to %d tiles", rows, (int)columns, t);
    }
}

// Places past 2^31 elements and more columns than 32 bits count; coordinates that do not fit are refused.
void large_tensors() {
  OnePassProduct f = shape(int64_t(1) << 22, 8, 64, 64, 8, 2, 3, 0, 1, 0);
  f.program.chips = 3;
  f.x_strides = {int64_t(1) << 42, int64_t(1) << 20, int64_t(1) << 16, 64, 1};
  const Sizes s = sizes_of(f);
  const int64_t column = s.columns - 1;
  const Column c = column_of(f, s, {2, 1, 0, 0}, column);
  const int64_t image = (int64_t(1) << 22) - 1;
  expect(c.y == f.out[0] - 2 && c.x == f.out[1] - 2 &&
             c.start == (int64_t(2) << 42) + (image << 20) + (int64_t(8) << 16) + c.y * 64 + c.x,
         "column %lld starts at %lld", (long long)column, (long long)c.start);
  const Tiling tiling = tiling_of(f, s, 64, 128);
  const Place last = place_of(f, tiling, tiling.count - 1);
  expect(last.chip == 2 && last.group == 1 && last.row == 0 && last.column / 128 == column / 128, "the last tile");
  expect(coordinates_fit(f), "2^22 images of 64 x 64 fit");
  f.height = 1 << 29;
  expect(!coordinates_fit(f), "2^29 pixels in a column do not");
}

}  // namespace

int main() {
  tile_indices<Tile<OutType::kFloat32, false>>();
  tile_indices<Tile<OutType::kFloat32, true>>();
  tile_indices<Tile<OutType::kBFloat16, false>>();
  tile_indices<Tile<OutType::kBFloat16, true>>();
  tiles_cover_the_result();
  large_tensors();
  return nft_test::exit_code("tile");
}
