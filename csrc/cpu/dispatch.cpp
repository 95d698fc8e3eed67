// Chooses the instruction set at run time: which table of kernels the sampler and the one-pass product use.
#include <stdlib.h>
#include <string.h>

#include <stdexcept>
#include <string>

#include "cpu/product/multiply.h"
#include "cpu/sampler/sampler.h"

namespace nft {

namespace scalar {
extern const Kernels table;
extern const Multiply multiply_table;
}  // namespace scalar
#ifdef NFT_HAVE_X86
namespace avx2 {
extern const Kernels table;
extern const Multiply multiply_table;
}  // namespace avx2
namespace avx512 {
extern const Kernels table;
extern const Multiply multiply_table;
}  // namespace avx512
#endif

namespace {

constexpr int kMost = 3;
struct Available {
  const Kernels* list[kMost + 1] = {};
  int count = 0;
  Available() {
#ifdef NFT_HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
      list[count++] = &avx512::table;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list[count++] = &avx2::table;
#endif
    list[count++] = &scalar::table;
  }
};

const Available& available() {
  static const Available found;
  return found;
}

}  // namespace

const Kernels* const* available_kernels(int* count) {
  *count = available().count;
  return available().list;
}

const Kernels& kernels_named(const char* name, const char* source) {
  const Available& found = available();
  std::string names;
  for (int i = 0; i < found.count; ++i) {
    if (strcmp(found.list[i]->name, name) == 0) return *found.list[i];
    names += (i ? ", " : "") + std::string(found.list[i]->name);
  }
  throw std::runtime_error(std::string(source) + ": must be one of the instruction sets this processor can run (" +
                           names + "); got " + name);
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* name = getenv("NFT_EXT_CPU_ISA");
    return name && *name ? kernels_named(name, "NFT_EXT_CPU_ISA") : *available().list[0];
  }();
  return chosen;
}

const Multiply& multiply_of(const Kernels& sampler) {
#ifdef NFT_HAVE_X86
  if (&sampler == &avx512::table) return avx512::multiply_table;
  if (&sampler == &avx2::table) return avx2::multiply_table;
#endif
  (void)sampler;
  return scalar::multiply_table;
}

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

}  // namespace nft
