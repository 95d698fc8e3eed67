// The few lines the native tests share: a check that says what failed, and a loop over the instruction sets.
#pragma once

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cpu/sampler/sampler.h"

namespace nft_test {

struct Tally {
  long checks = 0, failures = 0;
};

inline Tally& tally() {
  static Tally counts;
  return counts;
}

// Counts a check; the first failures are printed, with what was found.
__attribute__((format(printf, 2, 3))) inline void expect(bool holds, const char* format, ...) {
  ++tally().checks;
  if (holds) return;
  if (++tally().failures > 20) return;
  va_list values;
  va_start(values, format);
  printf("FAILED ");
  vprintf(format, values);
  printf("\n");
  va_end(values);
}

// The exit code of a test program.
inline int exit_code(const char* name) {
  printf("%s: %ld checks, %ld failed\n", name, tally().checks, tally().failures);
  return tally().failures ? 1 : 0;
}

// Every instruction set that this processor can run.
template <class F>
void each_instruction_set(F f) {
  int count = 0;
  const nft::Kernels* const* list = nft::available_kernels(&count);
  for (int i = 0; i < count; ++i) f(*list[i]);
}

inline bool same_bits(float a, float b) { return memcmp(&a, &b, sizeof a) == 0; }

// Reproducible words that have nothing to do with Philox (a multiplicative generator of L'Ecuyer's, upper half).
class Words {
 public:
  explicit Words(uint64_t seed) : state_(2 * seed + 1) {}
  uint32_t next() {
    state_ *= 1181783497276652981ull;
    return (uint32_t)(state_ >> 32);
  }
  // Uniform in (-1, 1).
  float signed_unit() { return (float)((int32_t)next() >> 7) * 0x1p-24f; }

 private:
  uint64_t state_;
};

}  // namespace nft_test
