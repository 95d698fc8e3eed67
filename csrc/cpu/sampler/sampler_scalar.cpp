#define NFT_ISA scalar
#include "cpu/sampler/sampler.inl"
