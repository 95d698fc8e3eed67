// The bounds of the fused products: default everywhere, set one at a time, indices out of range ignored.
#include "../cuda/choice.h"

#include <initializer_list>

#include "check.h"

using namespace nft::cuda;
using nft_test::expect;

int main() {
  FusedColumns bounds;
  const OutType types[] = {OutType::kFloat32, OutType::kBFloat16, OutType::kFloat16};
  const Direction directions[] = {Direction::kForward, Direction::kInputGradient};
  for (int device : {-1, 0, 63, 64, 1 << 20})
    for (Direction d : directions)
      for (OutType t : types) expect(bounds.most(device, d, t) == FusedColumns::kDefault[(int)d][(int)t], "default of device %d", device);

  bounds.set(3, 1, 1, 77);
  for (int device = 0; device < FusedColumns::kDevices; ++device)
    for (Direction d : directions)
      for (OutType t : types) {
        const bool changed = device == 3 && d == Direction::kInputGradient && t == OutType::kBFloat16;
        expect(bounds.most(device, d, t) == (changed ? 77 : FusedColumns::kDefault[(int)d][(int)t]), "device %d after one change", device);
      }

  for (int bad : {-1, 64, 1 << 30}) bounds.set(bad, 0, 0, 1);
  for (int bad : {-1, 2}) bounds.set(0, bad, 0, 1);
  for (int bad : {-1, 3}) bounds.set(0, 0, bad, 1);
  for (OutType t : types)
    expect(bounds.most(0, Direction::kForward, t) == FusedColumns::kDefault[0][(int)t], "after indices out of range");
  return nft_test::finish("cuda_choice");
}
