// Empty on purpose: see cuda.cmake.
