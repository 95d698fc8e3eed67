"""monte_carlo hands a CPU's convolutions images with channels last in memory, where the model gives the same logits for
them.
"""

import os

import pytest
import torch
from torch import nn
from torch._prims_common import suggest_memory_format

import nft_ext as nft
from nft_ext._common.channels_last import channels_last
from nft_ext.montecarlo.execution.passes import PROBE_IMAGES

LAST, PLAIN = torch.channels_last, torch.contiguous_format


class Flattened(nn.Module):
    def __init__(self, flatten, channels=3):
        super().__init__()
        self.conv, self.fc, self.flatten = nn.Conv2d(channels, 6, 3, padding=1), nn.Linear(6 * 36, 4), flatten

    def forward(self, x):
        return self.fc(self.flatten(self.conv(x).relu()))


def noisy(flatten=lambda y: y.flatten(1), channels=3):
    torch.manual_seed(0)
    return nft.convert(Flattened(flatten, channels), nft.NVMDevice(sigma=0.2))


def data(images=20, channels=3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(images, channels, 6, 6, generator=g), torch.randint(0, 4, (images,), generator=g)


def formats(model, pairs, **options):
    """The format of every batch that the convolution sees once the model has been tried out, and the report."""
    seen = []
    handle = model.conv.register_forward_pre_hook(
        lambda m, args: seen.append((len(args[0]), suggest_memory_format(args[0])))
    )
    report = nft.monte_carlo(model, pairs, seed=2, progress=False, **options)
    handle.remove()
    tried = [i for i, (rows, _) in enumerate(seen) if rows <= 2 * PROBE_IMAGES]
    return {layout for _, layout in seen[tried[-1] + 1 :]} if tried else {layout for _, layout in seen}, report


@pytest.mark.parametrize(
    "options",
    [
        dict(runs=4),
        dict(runs=6, chips_per_pass=3),
        dict(runs=6, chips_per_pass=2, batch_size=20),
        dict(runs=6, protocol="stratified", slice_images=20),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_their_channels_last(channels, options):
    found, report = formats(noisy(channels=channels), data(40, channels), **options)
    assert found == {LAST} and report.runs == options["runs"]


@pytest.mark.parametrize(
    "flatten",
    [lambda y: y.view(len(y), -1), lambda y: torch.as_strided(y, (len(y), 216), (216, 1)).clone()],
    ids=["refuses", "reads memory by itself"],
)
def test_a_model_that_wants_the_plain_layout_gets_it(flatten):
    found, report = formats(noisy(flatten), data(40), runs=4)
    assert found == {PLAIN}
    assert (
        report.accuracy.per_run == nft.monte_carlo(noisy(), data(40), runs=4, seed=2, progress=False).accuracy.per_run
    ).all()


def test_the_figures_are_those_of_a_loop_over_chips():
    model, (x, y) = noisy(), data(200)
    report = nft.monte_carlo(model, (x, y), runs=5, seed=3, progress=False)
    with torch.no_grad():
        for draw in range(5):
            with nft.chips(model.eval(), seed=3, draws=draw):
                assert abs(float((model(x).argmax(1) == y).float().mean()) - report.accuracy.per_run[draw]) <= 1 / 200


def test_other_models_and_data_are_left_alone():
    """Rows have no layout; neither has an image that meets no convolution."""
    for model, x in (
        (nn.Linear(5, 3), torch.randn(12, 5)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(12, 3, 2, 2)),
    ):
        seen = []
        model = nft.convert(model, nft.NVMDevice(sigma=0.1))
        handle = model.register_forward_pre_hook(lambda m, args: seen.append(args[0].is_contiguous()))
        nft.monte_carlo(model, (x, torch.zeros(12, dtype=torch.long)), runs=2, progress=False)
        handle.remove()
        assert all(seen)


@pytest.mark.parametrize("shape", [(4, 1, 5, 5), (4, 3, 5, 5), (4, 3, 1, 1), (1, 1, 5, 5)], ids=str)
def test_the_layout_is_told_by_the_strides(shape):
    x = torch.randn(shape)
    found = channels_last(x)
    assert torch.equal(found, x) and suggest_memory_format(found) == LAST
    assert channels_last(found) is found
    assert suggest_memory_format(torch.cat([found] * 2)) == LAST  # as `chips` repeats an input
    assert suggest_memory_format(nn.functional.conv2d(found, torch.randn(2, shape[1], 1, 1))) == LAST


def flattened(y):
    """The same network, which asks for another layout in another environment."""
    return y.view(len(y), -1) if "BY_VIEW" in os.environ else y.flatten(1)


def test_a_journal_notes_the_layout(tmp_path, monkeypatch):
    path, model = tmp_path / "chips.jsonl", noisy()
    model.flatten = flattened
    nft.monte_carlo(model, data(), runs=2, progress=False, resume=path)
    assert '"channels_last": true' in path.read_text()
    monkeypatch.setenv("BY_VIEW", "1")
    report = nft.monte_carlo(model, data(), runs=3, progress=False, resume=path)
    assert any(
        "chips.jsonl was begun with channels_last True, now False: chips of the two may differ by rounding" in note
        for note in report.notes
    )
