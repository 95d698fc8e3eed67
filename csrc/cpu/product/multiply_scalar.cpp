#define NFT_ISA scalar
#include "cpu/product/multiply.inl"
