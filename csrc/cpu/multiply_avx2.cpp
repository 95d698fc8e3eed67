#define NFT_ISA avx2
#include "multiply.inl"
