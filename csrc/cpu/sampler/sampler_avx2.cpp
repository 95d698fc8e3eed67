#define NFT_ISA avx2
#include "cpu/sampler/sampler.inl"
