#define NFT_ISA scalar
#include "sampler.inl"
