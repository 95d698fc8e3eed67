"""A stage of bench/gpu_check.py."""

from bench.gpu.stages import Stage


def stage(name, least=10.0, most=60.0, correctness=True):
    return Stage(name, f"what {name} does", least, most, correctness)
