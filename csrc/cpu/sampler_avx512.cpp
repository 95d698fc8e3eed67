#define NFT_ISA avx512
#include "sampler.inl"
