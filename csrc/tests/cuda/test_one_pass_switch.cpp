// Which products take the one-pass kernel: the switch's names, and the bounds of `auto`.
#include "cuda/torch/one_pass_switch.h"

#include <initializer_list>

#include "tests/check.h"

using namespace nft::cuda;
using nft_test::expect;

namespace {

constexpr OutType kTypes[] = {OutType::kFloat32, OutType::kBFloat16, OutType::kFloat16};
constexpr Direction kDirections[] = {Direction::kForward, Direction::kInputGradient};

void test_names() {
  expect(one_pass_named("") == OnePassRule::kAuto && one_pass_named("auto") == OnePassRule::kAuto, "auto, and nothing");
  expect(one_pass_named("always") == OnePassRule::kAlways, "always");
  expect(one_pass_named("never") == OnePassRule::kNever, "never");
  for (const char* wrong : {"Always", "1", "auto ", "on"}) {
    std::string message;
    try {
      one_pass_named(wrong);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    const std::string want = std::string("NFT_EXT_ONE_PASS: must be auto, always or never; got ") + wrong;
    expect(message == want, "%s: %s", wrong, message.c_str());
  }
}

void test_bounds() {
  const OnePassRule automatic = OnePassRule::kAuto;
  for (OutType type : kTypes)
    for (int64_t columns : {1, 16, 32, 33, 1 << 20}) {
      const bool few = type == OutType::kFloat32 && columns <= 32;
      for (int64_t rows : {8, 512})
        expect(takes_one_pass(automatic, Direction::kForward, type, true, rows, columns) == few, "auto, %d columns",
               (int)columns);
      expect(!takes_one_pass(automatic, Direction::kForward, type, true, 7, columns), "auto, few rows");
      expect(!takes_one_pass(automatic, Direction::kInputGradient, type, true, 512, columns),
             "auto, the input's gradient");
      for (Direction direction : kDirections)
        for (int64_t rows : {1, 512}) {
          expect(takes_one_pass(OnePassRule::kAlways, direction, type, true, rows, columns), "always");
          expect(!takes_one_pass(OnePassRule::kNever, direction, type, true, rows, columns), "never");
          for (OnePassRule rule : {OnePassRule::kAuto, OnePassRule::kAlways, OnePassRule::kNever})
            expect(!takes_one_pass(rule, direction, type, false, rows, columns), "several steps");
        }
    }
}

}  // namespace

int main() {
  test_names();
  test_bounds();
  return nft_test::exit_code("one_pass_switch");
}
