"""Benchmarks against plain PyTorch: `python bench/run.py` (see README.md)."""
