# The CUDA operators, compiled with nvcc even where the installed torch has no CUDA.
set(CMAKE_CUDA_ARCHITECTURES ${NFT_CUDA_ARCHITECTURES})
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11.8)
  message(FATAL_ERROR "The CUDA operators need nvcc 11.8 or later; got ${CMAKE_CUDA_COMPILER_VERSION} "
                      "(${CMAKE_CUDA_COMPILER}). Put a newer one on PATH or build with NFT_EXT_CUDA=0.")
endif()
find_package(CUDAToolkit REQUIRED)
set(NFT_CUDA_HOLDS "sm_80 sm_90 compute_90")  # what NFT_CUDA_ARCHITECTURES makes
set(NFT_CUDA_FACT "${NFT_CUDA_HOLDS}, nvcc ${CMAKE_CUDA_COMPILER_VERSION}")

# torch loads its libraries with local binding, so _C_cuda must name libtorch_cuda.so among its needed libraries. A torch
# without CUDA has none to link with; an empty library of that name stands in for it at link time only.
add_library(torch_cuda_stub SHARED csrc/cuda/torch/torch_cuda_stub.cpp)
set_target_properties(torch_cuda_stub PROPERTIES OUTPUT_NAME torch_cuda LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stub)

add_library(_C_cuda MODULE csrc/cuda/sampler/sampler.cu csrc/cuda/sampler/step_runs.cu
                           csrc/cuda/one_pass/product.cu csrc/cuda/one_pass/gradient.cu
                           csrc/cuda/torch/operators_cuda.cpp)
target_include_directories(_C_cuda PRIVATE csrc ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(_C_cuda PRIVATE USE_CUDA NFT_CUDA_HOLDS="${NFT_CUDA_HOLDS}")
# Compiles both architectures of a file at once, since each takes minutes. No fma in the noise: csrc/core/macros.h uses
# intrinsics without it, and -fmad=false makes sure. A kernel that spills registers gives a warning.
target_compile_options(_C_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--threads=2;-fmad=false;-Xptxas=-warn-spills,-warn-lmem-usage>"
                                       "$<$<COMPILE_LANGUAGE:CXX>:${NFT_ROUNDING}>")
target_link_libraries(_C_cuda PRIVATE nft_torch torch_cuda_stub CUDA::cudart_static)
target_link_options(_C_cuda PRIVATE -Wl,--no-as-needed)
set_target_properties(_C_cuda PROPERTIES PREFIX "" SUFFIX ".so" LIBRARY_OUTPUT_DIRECTORY ${NFT_EXT_OUTPUT}
                                         SKIP_BUILD_RPATH ON CUDA_STANDARD 17 CUDA_VISIBILITY_PRESET hidden)
