"""Out of memory while batching chips: half as many at once from there on, said once, the chips the same."""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo.execution.out_of_memory import Halving, out_of_memory
from nft_ext.montecarlo.statistics.label_tallies import label_tallies

LOGITS = torch.randn(40, 6, 4, generator=torch.Generator().manual_seed(0))  # [draws, images, classes]
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


class Chips:
    """tallies_of with room for `room` chips at once; remembers what it was asked for."""

    def __init__(self, room):
        self.room, self.asked = room, []

    def __call__(self, draws, done):
        self.asked.append(list(draws))
        done(0.5)
        if len(draws) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        done(0.5)
        return label_tallies(LOGITS[draws], LABELS)


def rows(tallies):
    return torch.stack([tallies["correct"], tallies["loss"]], dim=1)


@pytest.mark.parametrize("room", [1, 2, 3, 5, 10])
def test_every_chip_is_there_once_and_in_order(room):
    chips = Chips(room)
    halving = Halving(chips, 10, 64)
    draws, shares = list(range(20, 30)), []
    if room < 10:
        with pytest.warns(
            RuntimeWarning, match="out of memory with 10 chips per pass; continuing with half as many"
        ) as said:
            found = halving(draws, shares.append)
        assert len(said) == 1, "said once"
    else:
        found = halving(draws, shares.append)
    assert torch.equal(rows(found), rows(label_tallies(LOGITS[draws], LABELS)))
    assert sum(shares) == pytest.approx(1.0) and min(shares) > 0
    assert max(len(a) for a in chips.asked if len(a) <= room) == halving.at_once <= room


def test_later_passes_begin_with_what_fitted():
    chips = Chips(3)
    halving = Halving(chips, 8, 64)
    with pytest.warns(RuntimeWarning):
        halving(list(range(8)), lambda share: None)
    assert halving.at_once == 2 and halving.note == "memory ran out; later passes ran at most 2 chips at once"
    chips.asked.clear()
    halving(list(range(8, 16)), lambda share: None)
    assert [len(a) for a in chips.asked] == [2, 2, 2, 2]


def test_passes_keep_their_shape():
    chips = Chips(3)
    with pytest.warns(RuntimeWarning):
        Halving(chips, 5, 64)(list(range(5)), lambda share: None)
    assert chips.asked == [[0, 1, 2, 3, 4], [0, 1, 2], [3, 4, 4]]


def test_one_chip_that_does_not_fit_is_an_error():
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RuntimeError, match="batch_size: one chip must fit the memory.*; got 64"),
    ):
        Halving(Chips(0), 4, 64)(list(range(4)), lambda share: None)


def test_other_errors_pass():
    def broken(draws, done):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Halving(broken, 4, 64)([0], lambda share: None)


def test_real_failed_allocations_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shape mismatch")) and not out_of_memory(ValueError("out of memory"))


class Narrow(nn.Module):
    """A network that runs out of memory beyond `rows` rows."""

    def __init__(self, rows):
        super().__init__()
        self.layer, self.rows = nn.Linear(6, 3), rows

    def forward(self, x):
        if len(x) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.layer(x)


def test_monte_carlo_goes_on_and_says_so():
    def report(rows, chips):
        torch.manual_seed(0)
        model = nft.convert(Narrow(rows), nft.NVMDevice(sigma=0.2))
        data = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
        return nft.monte_carlo(model, data, runs=10, chips_per_pass=chips, batch_size=16, progress=False)

    with pytest.warns(RuntimeWarning, match="monte_carlo: out of memory with 8 chips per pass"):
        found = report(16 * 3, 8)
    assert "memory ran out; later passes ran at most 2 chips at once" in found.notes
    assert found.accuracy.per_run.tolist() == report(10_000, 8).accuracy.per_run.tolist()
