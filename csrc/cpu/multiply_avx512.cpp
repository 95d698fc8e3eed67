#define NFT_ISA avx512
#include "multiply.inl"
