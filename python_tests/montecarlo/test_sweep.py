"""Sweeps over sigma use the same chips at every point."""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo.execution import chip_evaluator
from nft_ext.montecarlo import monte_carlo, sigma_sweep

SIGMAS = [0.0, 0.1, 0.3]


@pytest.fixture
def model():
    torch.manual_seed(2)
    return nft.convert(nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 4)), nft.NVMDevice(sigma=0.2))


@pytest.fixture
def data():
    return torch.randn(30, 9), torch.randint(4, (30,))


def test_each_point_is_the_evaluation_at_its_sigma(model, data):
    reports = sigma_sweep(model, data, SIGMAS, runs=5, seed=3, progress=False)
    assert [report.sigma for report in reports] == SIGMAS
    for report in reports:
        alone = monte_carlo(model, data, runs=5, seed=3, sigma=report.sigma, progress=False)
        assert report.accuracy.per_run.tolist() == alone.accuracy.per_run.tolist()


def test_a_loader_is_read_once_for_the_whole_sweep(model, data):
    reads = []

    class Counted(torch.utils.data.TensorDataset):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    sigma_sweep(model, torch.utils.data.DataLoader(Counted(*data)), SIGMAS, runs=2, progress=False)
    assert len(reads) == 30


@pytest.mark.parametrize("after, points, interrupted", [(7, 2, True), (5, 1, False), (6, 1, False)])
def test_an_interrupt_keeps_the_points_that_are_done(model, data, monkeypatch, after, points, interrupted):
    """5 runs a point, one a pass: after 7, the second point holds 2; after 6, it holds too few."""
    original = chip_evaluator.ChipEvaluator.tallies
    left = [after]

    def tallies(self, draws, batch_done):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, draws, batch_done)

    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "tallies", tallies)
    reports = sigma_sweep(model, data, SIGMAS, runs=5, chips_per_pass=1, progress=False)
    assert len(reports) == points and reports[-1].interrupted is interrupted


@pytest.mark.parametrize("sigmas, words", [([], "at least one"), ([0.1, -0.1], "got -0.1")])
def test_bad_sigmas_are_refused(model, data, sigmas, words):
    with pytest.raises(ValueError, match=f"^sigmas: .*{words}"):
        sigma_sweep(model, data, sigmas)
