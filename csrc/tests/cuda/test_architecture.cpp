// Which compute capabilities a build serves, and what it says to the others (csrc/cuda/torch/architecture.h).
#include "cuda/torch/architecture.h"

#include "tests/check.h"

using nft::cuda::why_not_served;
using nft_test::expect;

namespace {

void expect_served(const char* holds, int capability, bool served) {
  const auto why = why_not_served(capability / 10, capability % 10, holds);
  expect(!why == served, "%s on %d.%d: %s", holds, capability / 10, capability % 10, why ? why->c_str() : "served");
}

}  // namespace

int main() {
  const char* const usual = "sm_80 sm_90 compute_90";
  for (int capability : {35, 60, 61, 70, 72, 75}) expect_served(usual, capability, false);
  for (int capability : {80, 86, 87, 89, 90, 100, 103, 120, 121}) expect_served(usual, capability, true);
  for (int capability : {80, 89, 100, 120})
    expect_served("sm_90", capability, false);  // machine code: its own major version only
  expect_served("sm_90", 90, true);
  expect_served("sm_86", 80, false);  // and no earlier minor version
  expect_served("sm_86", 89, true);
  expect_served("compute_75", 75, true);
  expect_served("compute_75", 120, true);
  expect_served("compute_75", 72, false);
  const std::string why = *why_not_served(7, 5, usual);
  for (const char* part : {"compute capability 7.5", "sm_80 sm_90 compute_90"})
    expect(why.find(part) != std::string::npos, "the message names %s: %s", part, why.c_str());
  return nft_test::exit_code("architecture");
}
