#define NFT_ISA avx512
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 means its own header (gcc.gnu.org/PR105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "cpu/sampler/sampler.inl"
