// How the one-pass kernel's tiles are split (csrc/cuda/one_pass/split.h): every step of every tile belongs to one part,
// every sum has a place of its own, and a device is filled where tiles alone do not fill it. What split tiles compute:
// test_one_pass.cpp and test_gradient.cpp.
#include <vector>

#include "cuda/one_pass/split.h"
#include "tests/check.h"

using namespace nft::generic;
using nft::cuda::OutType;
using nft::cuda::Split;
using nft_test::expect;

namespace {

// What a split costs by the rule's own prices.
int64_t price(int64_t tiles, const Split& split, int64_t resident) {
  const int64_t rounds = (tiles * split.parts + resident - 1) / resident;
  return rounds * (split.steps + kStartPrice) + (split.parts > 1 ? kAddingPrice : 0);
}

void parts_cover_the_steps_once() {
  for (int64_t resident : {1, 2, 264, 660})
    for (int64_t tiles = 1; tiles <= 700; tiles += tiles < 20 ? 1 : 37)
      for (int steps = 0; steps <= 300; steps += steps < 40 ? 1 : 13) {
        const Split split = split_of(tiles, steps, resident);
        int next = 0;
        for (int part = 0; part < split.parts; ++part) {
          const Steps s = steps_of_part(split, part, steps);
          expect(s.begin == next && (s.end > s.begin || steps == 0), "%d tiles of %d steps on %d: part %d is %d to %d",
                 (int)tiles, steps, (int)resident, part, s.begin, s.end);
          next = s.end;
        }
        expect(next == steps, "%d tiles of %d steps on %d: parts end at %d", (int)tiles, steps, (int)resident, next);
        expect(price(tiles, split, resident) <= price(tiles, {1, steps}, resident),
               "%d tiles of %d steps on %d: %d parts cost more", (int)tiles, steps, (int)resident, split.parts);
      }
  expect(split_of(0, 5, 264).parts == 1 && split_of(5, 0, 264).parts == 1 && split_of(5, 9, 0).parts == 1,
         "nothing to split");
}

template <class T>
void sums_have_their_places() {
  for (int parts : {2, 3, 7}) {
    const Split split = {parts, 1};
    std::vector<int> times((size_t)(3 * parts * sums_of_tile<T>()), 0);
    for (int64_t tile = 0; tile < 3; ++tile)
      for (int part = 0; part < parts; ++part)
        for (int product = 0; product < T::kDown * T::kAcross; ++product)
          for (int thread = 0; thread < T::kThreads; ++thread)
            for (int i = 0; i < 4; ++i) ++times[(size_t)(place_of_sums<T>(split, tile, part, product, thread) + i)];
    for (int n : times) expect(n == 1, "%d sums in one place", n);
  }
}

// One chip's layers of ResNet-18 and VGG-8 that have 256 columns and fewer, on 132 multiprocessors with 2 wide or 5
// narrow thread blocks each (csrc/cuda/one_pass/launch.h). Without a split 2 to 64 thread blocks would run.
void few_tiles_fill_the_device() {
  struct Case {
    const char* name;
    int64_t tiles;
    int steps, resident;
  };
  const Case cases[] = {
      {"linear 8192 x 1024, 1 row", 1024 / 16, 8192 / 64, 660},
      {"linear 8192 x 1024, 256 rows", 1024 / 64 * 2, 8192 / 32, 264},
      {"conv 512, 4 x 4, 1 image", 512 / 16, 512 * 9 / 64, 660},
      {"conv 512, 4 x 4, 16 images", 512 / 64 * 2, 512 * 9 / 32, 264},
      {"conv 256, 8 x 8, 1 image", 256 / 64, 256 * 9 / 32, 264},
      {"conv 256, 8 x 8, 4 images", 256 / 64 * 2, 256 * 9 / 32, 264},
      {"conv 128, 16 x 16, 1 image", 128 / 64 * 2, 128 * 9 / 32, 264},
  };
  for (const Case& c : cases) {
    const Split split = split_of(c.tiles, c.steps, c.resident);
    const int64_t running = c.tiles * split.parts;
    expect(running >= 132 && running <= c.resident * kMostRounds, "%s: %d thread blocks", c.name, (int)running);
    expect(3 * price(c.tiles, split, c.resident) <= price(c.tiles, {1, c.steps}, c.resident),
           "%s: %d parts of %d steps", c.name, split.parts, split.steps);
  }
  expect(split_of(1024, 36, 264).parts == 1, "a full device is left alone");
}

}  // namespace

int main() {
  parts_cover_the_steps_once();
  sums_have_their_places<Tile<OutType::kFloat32, false>>();
  sums_have_their_places<Tile<OutType::kBFloat16, true>>();
  few_tiles_fill_the_device();
  return nft_test::exit_code("split");
}
