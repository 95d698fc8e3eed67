#define NFT_ISA avx2
#include "sampler.inl"
