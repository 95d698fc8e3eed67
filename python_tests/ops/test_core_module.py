"""nft_ext._core, the functions on NumPy arrays: each checks its arguments before it reads an array."""

import numpy as np
import pytest

from nft_ext import NVMDevice, _core  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

WEIGHT = np.linspace(-1, 1, 1000, dtype=np.float32)
ARGS = dict(
    weight=WEIGHT,
    step=float(_core.step(WEIGHT, 8)),
    table=NVMDevice().operator_table(),
    keys=np.array([[0, 0], [0, 1]], np.int64),
    stream=0,
    weight_bits=8,
    device_bits=2,
    path=1,
)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(threads=10**6), "threads: must be in 1..1024; got 1000000"),
        (dict(threads=0), "threads: must be in 1..1024; got 0"),
        (dict(path=3), r"path: must be 0 \(off\), 1 \(fast\) or 2 \(per device\); got 3"),
        (dict(mapping=2), r"mapping: must be 0 \(sign\) or 1 \(differential\); got 2"),
        (dict(weight_bits=17), "weight_bits: must be in 1..16; got 17"),
        (dict(device_bits=3), "device_bits: must divide weight_bits; got 3"),
        (dict(step=-1.0), "step: must be a finite number >= 0; got -1"),
        (dict(step=float("nan")), "step: must be a finite number >= 0; got nan"),
        (dict(table=np.zeros(8, np.float32)), "table: must have 512 entries; got 8"),
        (dict(keys=np.zeros((1, 3), np.int64)), r"keys: must be int64 \[S, 2\]; got \[1, 3\]"),
    ],
    ids=str,
)
def test_program_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        _core.program(**(ARGS | changes))


def test_quantize_and_step_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="weight_bits: must be in 1..16; got 0"):
        _core.step(WEIGHT, 0)
    with pytest.raises(ValueError, match="weight_bits: must be in 1..16; got 31"):
        _core.quantize(WEIGHT, 0.1, 31)
    with pytest.raises(ValueError, match="step: must be a finite number >= 0; got -0.1"):
        _core.quantize(WEIGHT, -0.1, 8)


def test_more_threads_than_chunks_give_the_same_weights():
    expected = _core.program(**ARGS)
    for threads in (2, 3, 100):
        assert np.array_equal(_core.program(**ARGS, threads=threads), expected)
    assert _core.program(**(ARGS | dict(weight=WEIGHT[:0])), threads=5).shape == (2, 0)
