"""How many chips share a pass."""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo.execution import passes
from nft_ext.montecarlo.execution.passes import chips_that_fit
from nft_ext.montecarlo.tasks.outputs import split_chips

CPU = torch.device("cpu")


@pytest.fixture
def plenty_of_memory(monkeypatch):
    monkeypatch.setattr(passes, "free_memory", lambda device: 2**34)


@pytest.mark.parametrize(
    "runs, batch, expected",
    [
        (200, 128, 1),  # the images of one chip fill the cache
        (200, 300, 1),
        (200, 64, 2),
        (100, 1, 100),  # 100 fit
        (200, 1, 100),  # 128 would fit: two passes of 100 beat 128 and 72
        (3, 16, 3),  # never more than the runs
        (9, 16, 5),  # 8 would fit: two passes of 5 and 4 beat 8 and 1
    ],
)
def test_auto_fills_the_cache_evenly_on_the_cpu(plenty_of_memory, runs, batch, expected):
    assert chips_that_fit(runs, batch, row_bytes=2**15, weight_bytes=1000, device=CPU) == expected


def test_no_more_chips_than_save_calls_share_a_pass(plenty_of_memory):
    assert chips_that_fit(1280, 1, row_bytes=1, weight_bytes=1, device=CPU) == passes.CHIPS


@pytest.mark.parametrize("batch, rows, expected", [(16, 1, 256), (16, 128, 2), (50, 128, 1), (1, 4096, 1)])
def test_auto_counts_the_rows_of_linear_layers_on_cuda(plenty_of_memory, batch, rows, expected):
    found = chips_that_fit(256, batch, row_bytes=1000, weight_bytes=1000, device=torch.device("cuda"), rows=rows)
    assert found == expected


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(10, 8), nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, tokens):
        return self.down(self.up(self.words(tokens)).mean(dim=1))


@pytest.mark.parametrize(
    "network, inputs, row_bytes, rows",
    [
        (lambda: nn.Sequential(nn.Linear(6, 50), nn.Linear(50, 3)), torch.randn(20, 6), 50 * 4, 1),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 3)),
            torch.randn(20, 3, 8, 8),
            4 * 64 * 4,
            1,
        ),
        (Tokens, torch.randint(10, (20, 7)), 7 * 32 * 4, 7),
    ],
    ids=["mlp", "convolutions", "tokens"],
)
def test_a_pass_of_one_chip_shows_the_sizes(network, inputs, row_bytes, rows):
    model = nft.convert(network().eval(), nft.NVMDevice(sigma=0.1))

    def forward(batch):
        with nft.chips(model, draws=[0]):
            return model(batch)

    found = passes.probe(model, forward, inputs, len(inputs))
    assert (list(found.output.shape), found.row_bytes, found.rows) == ([len(inputs), 3], row_bytes, rows)


def test_an_evaluation_takes_the_chips_that_fit(plenty_of_memory, monkeypatch):
    monkeypatch.setattr(passes, "CACHE_BYTES", 4 * 16 * 7 * 32 * 4)  # four chips with 16 texts
    model = nft.convert(Tokens().eval(), nft.NVMDevice(sigma=0.1))
    data = torch.randint(10, (32, 7)), torch.arange(32) % 3
    report = nft.monte_carlo(model, data, runs=12, batch_size=16, protocol="full", progress=False)
    assert report.chips_per_pass == 4


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
