#define NFT_ISA avx512
#include "cpu/product/multiply.inl"
