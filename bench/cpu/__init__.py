"""The cases of bench/run.py, on the CPU."""
