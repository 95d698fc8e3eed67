"""The parts of bench/gpu_check.py: its stages, each a process of its own, and what they share."""
