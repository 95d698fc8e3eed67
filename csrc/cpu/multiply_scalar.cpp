#define NFT_ISA scalar
#include "multiply.inl"
