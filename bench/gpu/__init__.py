"""The stages of bench/gpu_check.py, one process each, and their shared code."""
