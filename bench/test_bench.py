"""The eager variants of all cases for pytest-benchmark (pyproject.toml skips benchmarks, hence -o):

    python -m pytest -o addopts= bench/test_bench.py --benchmark-only [-k "resnet18-1 and nft"] [--benchmark-json FILE]

Rounds are not interleaved: quote bench/run.py, and track changes with this one.
"""

from __future__ import annotations

import pytest

from bench.harness import registry

EAGER = [
    pytest.param(case, variant, id=f"{case.name}: {variant.name}")
    for case in registry.cases()
    for variant in case.variants
    if variant.mode == "eager"
]


@pytest.mark.parametrize("case, variant", EAGER)
def test_speed(benchmark, case, variant):
    ready = variant.make()
    failure = ready.check()
    assert failure is None, failure
    benchmark.group = f"{case.name}: {case.shape}"
    benchmark.extra_info["variant"] = variant.name
    benchmark(ready.run)
