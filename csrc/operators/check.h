// The check whose message names the argument, and products of sizes that cannot overflow in silence.
#pragma once

#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace nft {

using torch::headeronly::IntHeaderOnlyArrayRef;
using Ints = std::vector<int64_t>;

// A value as an error message shows it.
template <class Value>
inline void show(std::ostream& out, const Value& value) {
  out << value;
}
inline void show(std::ostream& out, const IntHeaderOnlyArrayRef& sizes) {
  out << "[";
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << "]";
}
inline void show(std::ostream& out, const Ints& sizes) { show(out, IntHeaderOnlyArrayRef(sizes)); }

// Throws "nft_ext::op: argument: rule; got value". The value becomes
// text only if the rule is broken: every call comes through here.
template <class Value>
inline void check(bool holds, const char* op, const char* argument, const char* rule, const Value& value) {
  if (holds) return;
  std::ostringstream out;
  out << "nft_ext::" << op << ": " << argument << ": " << rule << "; got ";
  show(out, value);
  throw std::runtime_error(out.str());
}

// The elements of a new tensor. A stride of zero gives a small argument huge sizes, so the product may overflow.
inline int64_t elements_of(const Ints& sizes) {
  constexpr int64_t kMost = int64_t(1) << 59;  // their bytes fit int64
  int64_t elements = 1;
  bool fits = true;
  for (int64_t size : sizes) {
    if (size == 0) return 0;
    fits = fits && !__builtin_mul_overflow(elements, size, &elements) && elements <= kMost;
  }
  check(fits, "result", "sizes", "must have a product of at most 2^59 elements", sizes);
  return elements;
}

// The size of dim 0 for all chips.
inline int64_t for_all_chips(const char* op, int64_t chips, int64_t rows) {
  int64_t all = 0;
  check(!__builtin_mul_overflow(chips, rows, &all), op, "key", "must have fewer chips for this many rows", chips);
  return all;
}

}  // namespace nft
