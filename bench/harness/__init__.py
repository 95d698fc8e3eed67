"""Shared code of the benchmarks: cases, timing, checks of results, tables."""
