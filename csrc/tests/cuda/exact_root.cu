// Every number that csrc/core/macros.h's moderate_root is for, against the device's own correctly rounded root. To be
// run where a GPU is: python_tests/cuda/test_root.py compiles and runs it.
#include <stdio.h>

#include "core/macros.h"

using namespace nft::generic;

__global__ void compare(uint32_t first, uint32_t last, unsigned long long* wrong, uint32_t* example) {
  const uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
  for (uint64_t u = first + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; u <= last; u += stride) {
    const float a = float_of((uint32_t)u);
    if (bits_of(moderate_root(a)) == bits_of(root(a))) continue;
    atomicAdd(wrong, 1ull);
    *example = (uint32_t)u;
  }
}

struct Found {
  unsigned long long wrong;
  uint32_t example;
};

int main() {
  Found found = {}, *there = nullptr;
  if (cudaMalloc(&there, sizeof found) != cudaSuccess) return 2;
  if (cudaMemcpy(there, &found, sizeof found, cudaMemcpyHostToDevice) != cudaSuccess) return 2;
  const uint32_t first = (127 - 100) << 23, last = (127 + 100) << 23;
  compare<<<1024, 256>>>(first, last, &there->wrong, &there->example);
  compare<<<1, 1>>>(0, 0, &there->wrong, &there->example);
  if (cudaMemcpy(&found, there, sizeof found, cudaMemcpyDeviceToHost) != cudaSuccess) return 2;
  printf("%llu of %llu roots differ", found.wrong, (unsigned long long)(last - first) + 2);
  printf(found.wrong ? ", such as that of 0x%08x\n" : "\n", found.example);
  return found.wrong != 0;
}
