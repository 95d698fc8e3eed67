"""How many chips share a pass."""

import pytest
import torch

from nft_ext.montecarlo.execution import passes
from nft_ext.montecarlo.execution.passes import chips_that_fit, split_chips

CPU = torch.device("cpu")


@pytest.fixture
def plenty_of_memory(monkeypatch):
    monkeypatch.setattr(passes, "free_memory", lambda device: 2**34)


@pytest.mark.parametrize(
    "runs, batch, expected",
    [
        (200, 128, 1),  # one chip's images fill a pass
        (200, 300, 1),
        (200, 64, 2),
        (100, 1, 100),  # 100 fit in 128 rows
        (3, 16, 3),  # never more than the runs
        (9, 16, 5),  # 8 would fit: two passes of 5 and 4 beat 8 and 1
    ],
)
def test_auto_fills_the_rows_of_a_pass_evenly(plenty_of_memory, runs, batch, expected):
    assert chips_that_fit(runs, batch, row_bytes=1000, weight_bytes=1000, device=CPU) == expected


def test_auto_stays_within_a_quarter_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(passes, "free_memory", lambda device: 4 * 10 * 2**20)
    assert chips_that_fit(200, 2, row_bytes=0, weight_bytes=2**20, device=CPU) == 9
    assert chips_that_fit(200, 2, row_bytes=0, weight_bytes=2**30, device=CPU) == 1


@pytest.mark.parametrize(
    "output, kind",
    [
        ((torch.zeros(6, 4), None), TypeError),
        (torch.zeros(6), ValueError),
        (torch.zeros(4, 6), ValueError),
        (torch.zeros(6, 0), ValueError),
    ],
)
def test_only_logits_are_taken(output, kind):
    with pytest.raises(kind, match="^model: must return"):
        split_chips(output, chips=2, images=3)


def test_logits_are_chip_major():
    output = torch.arange(12.0).reshape(6, 2)
    assert split_chips(output, chips=2, images=3)[1, 0].tolist() == [6, 7]
