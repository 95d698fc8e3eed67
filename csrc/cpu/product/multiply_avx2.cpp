#define NFT_ISA avx2
#include "cpu/product/multiply.inl"
